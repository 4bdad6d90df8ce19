//! stub
/// A file.
#[derive(Debug)]
pub struct LitmusFile;
/// none
#[must_use]
pub fn files() -> Vec<LitmusFile> {
    Vec::new()
}
