//! The firmware configuration device (QEMU's documentation, "QEMU Firmware Configuration (fw_cfg) Device"): a selector and a
//! data port, without DMA. What it doesn't have reads as zeros.

/// The selector: a 16-bit write.
pub(super) const SELECT: u16 = 0x510;
/// The data: one byte a read.
pub(super) const DATA: u16 = 0x511;

/// The items that exist, in the order of [`FirmwareConfig::items`].
const KEYS: [u16; 6] = [
    // The signature "QEMU".
    0x0000, // The interface: selector and data port only.
    0x0001, // RAM in bytes.
    0x0003, // Processors that are there, and that may be there.
    0x0005, 0x000f, // The number of files.
    0x0019,
];

/// The device.
#[derive(Clone, Debug)]
pub(super) struct FirmwareConfig {
    items: [u64; 6],
    selected: u16,
    offset: u32,
}

impl FirmwareConfig {
    pub(super) fn new(cpus: u8, ram: u64) -> Self {
        let signature = u32::from_le_bytes(*b"QEMU");
        let cpus = u64::from(cpus);
        Self {
            items: [signature.into(), 1, ram, cpus, cpus, 0],
            selected: 0,
            offset: 0,
        }
    }

    /// Selects an item. The top bits ask for the item's own kind and for writing, which is no longer offered anywhere.
    pub(super) const fn select(&mut self, key: u16) {
        self.selected = key;
        self.offset = 0;
    }

    /// Reads the selected item's next byte; items are little-endian and followed by zeros.
    pub(super) fn read(&mut self) -> u8 {
        let offset = self.offset;
        self.offset = offset.saturating_add(1);
        let item = KEYS.iter().position(|&key| key == self.selected);
        item.filter(|_| offset < 8)
            .map_or(0, |item| (self.items[item] >> (8 * offset)) as u8)
    }
}

#[cfg(test)]
mod the_firmware_configuration {
    use super::FirmwareConfig;

    fn item(device: &mut FirmwareConfig, key: u16) -> [u8; 10] {
        device.select(key);
        core::array::from_fn(|_| device.read())
    }

    #[test]
    fn tells_what_it_is_and_what_the_machine_has() {
        let mut device = FirmwareConfig::new(3, 5 << 30);
        assert_eq!(&item(&mut device, 0)[..5], b"QEMU\0");
        assert_eq!(item(&mut device, 1)[..2], [1, 0]);
        assert_eq!(item(&mut device, 3)[..8], (5u64 << 30).to_le_bytes());
        assert_eq!(item(&mut device, 5)[..2], [3, 0]);
        assert_eq!(item(&mut device, 15)[..2], [3, 0]);
    }

    #[test]
    fn reads_as_zeros_where_nothing_is() {
        let mut device = FirmwareConfig::new(3, 5 << 30);
        for key in [0x19, 0x0d, 0x8000, 0x4000, 0xffff] {
            assert_eq!(item(&mut device, key), [0; 10]);
        }
    }
}
