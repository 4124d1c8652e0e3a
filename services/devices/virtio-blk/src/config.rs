//! What the device says of itself: features (5.2.3) and the device-specific configuration (5.2.4).

use ipc_schema::disk::{BLOCK, BlkConfig, SECTOR};
use ipc_schema::virtio::{BLOCK as IDENTITY, feature};
use virtio::device::FEATURES;

/// Feature bits of block devices (5.2.3).
pub mod bits {
    /// `seg_max` says how many parts a request's data may have.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is there.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// There is a flush command.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is there.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// There are several queues.
    pub const MQ: u64 = 1 << 12;
    /// There is a discard command.
    pub const DISCARD: u64 = 1 << 13;
    /// There is a write zeroes command.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Most descriptors of a queue.
pub const MAX_SIZE: u16 = 128;
/// Most parts of a request's data: the header and the status are two more.
const SEG_MAX: u32 = MAX_SIZE as u32 - 2;
/// Most sectors that one segment discards, or clears if that is asked for as such: `store` does so in one turn.
pub const MAX_CLEAR: u32 = 1 << 15;
/// Most sectors that one segment clears by writing zeroes.
pub const MAX_WRITTEN: u32 = 1 << 11;
/// Most segments of one such request.
pub const MAX_SEGMENTS: u32 = 16;
/// Sectors of a block.
pub const SECTORS: u32 = (BLOCK / SECTOR) as u32;

/// Most sectors that one segment of a write zeroes request has.
#[must_use]
pub const fn max_zeroes(config: &BlkConfig) -> u32 {
    if config.zeroes() {
        MAX_CLEAR
    } else {
        MAX_WRITTEN
    }
}

/// Features that are offered.
#[must_use]
pub const fn features(config: &BlkConfig) -> u64 {
    let mut all = FEATURES | bits::SEG_MAX | bits::BLK_SIZE | bits::FLUSH | bits::TOPOLOGY;
    if !config.packed {
        all &= !feature::RING_PACKED;
    }
    if config.queues > 1 {
        all |= bits::MQ;
    }
    if !config.writable() {
        all |= bits::RO;
    }
    if config.writable() {
        all |= bits::DISCARD | bits::WRITE_ZEROES;
    }
    all
}

/// The device-specific configuration.
#[must_use]
pub fn image(config: &BlkConfig) -> [u8; IDENTITY.config_len as usize] {
    let mut image = [0; IDENTITY.config_len as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = image.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    let capacity = u64::from(config.disk.blocks) * u64::from(SECTORS);
    put(0, &capacity.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    // A sector is the least that is read or written; a block is what is read or written best.
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[SECTORS.ilog2() as u8, 0]);
    put(26, &(SECTORS as u16).to_le_bytes());
    put(28, &(SECTORS * ipc_schema::disk::SPAN as u32).to_le_bytes());
    // What is written is the disk's when the guest is told: there is no cache to be written back.
    put(34, &config.queues.to_le_bytes());
    if config.writable() {
        put(36, &MAX_CLEAR.to_le_bytes());
        put(40, &MAX_SEGMENTS.to_le_bytes());
        put(44, &SECTORS.to_le_bytes());
        put(48, &max_zeroes(config).to_le_bytes());
        put(52, &MAX_SEGMENTS.to_le_bytes());
        // Whether the place may be given up.
        put(56, &[u8::from(config.zeroes())]);
    }
    image
}
