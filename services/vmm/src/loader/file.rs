//! Checked reads from a guest's file.

use super::LoadError;

/// `len` bytes at `at`.
pub(super) fn bytes(file: &[u8], at: usize, len: usize) -> Result<&[u8], LoadError> {
    let end = at.saturating_add(len);
    file.get(at..end).ok_or(LoadError::Truncated {
        what: "a part of it",
        end: end as u64,
        have: file.len() as u64,
    })
}

fn array<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], LoadError> {
    let end = at.saturating_add(N);
    file.get(at..end)
        .and_then(|b| b.try_into().ok())
        .ok_or(LoadError::Truncated {
            what: "its header",
            end: end as u64,
            have: file.len() as u64,
        })
}

/// A byte.
pub(super) fn u8(file: &[u8], at: usize) -> Result<u8, LoadError> {
    Ok(u8::from_le_bytes(array(file, at)?))
}

/// Two bytes, little-endian.
pub(super) fn u16(file: &[u8], at: usize) -> Result<u16, LoadError> {
    Ok(u16::from_le_bytes(array(file, at)?))
}

/// Four bytes, little-endian.
pub(super) fn u32(file: &[u8], at: usize) -> Result<u32, LoadError> {
    Ok(u32::from_le_bytes(array(file, at)?))
}

/// Eight bytes, little-endian.
pub(super) fn u64(file: &[u8], at: usize) -> Result<u64, LoadError> {
    Ok(u64::from_le_bytes(array(file, at)?))
}
