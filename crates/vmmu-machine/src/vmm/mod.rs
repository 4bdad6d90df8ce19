//! The hypervisor: enters guests, serves their exits, implements what the library asks of a host.
