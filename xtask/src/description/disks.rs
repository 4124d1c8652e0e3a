//! Disks: from the TOML as written to the schema's.

use ipc_schema::disk::BLOCK;
use ipc_schema::manifest::{Disk, Home, MAX_SERIAL, disk_file};
use toml::Spanned;

use super::check::Context;
use super::{Mistake, Partition, Source, raw};

/// A block device names one of the disks; no other device does.
pub fn known(
    cx: &Context<'_>,
    spanned: &Spanned<raw::Device>,
    disks: &[Disk],
) -> Result<(), Mistake> {
    let device = spanned.get_ref();
    let all: Vec<&str> = disks.iter().map(|d| d.name.as_str()).collect();
    let remedy = if all.is_empty() {
        "describe one: [[disk]] with name and size, or image".to_owned()
    } else {
        format!("use one of: {}", all.join(", "))
    };
    let other = device.disk.as_ref().map(Spanned::span);
    let card = device.kind == raw::DeviceKind::VirtioNet;
    let queues = device.queues.as_ref().filter(|_| !card);
    let other = other.or(queues.map(Spanned::span));
    match (&device.disk, device.kind) {
        (None, raw::DeviceKind::VirtioBlk) => {
            let what = "this device has no `disk`".to_owned();
            Err(cx.mistake(spanned.span().start, what, remedy))
        }
        (Some(disk), raw::DeviceKind::VirtioBlk) if !all.contains(&disk.get_ref().as_str()) => {
            let what = format!("there is no disk `{}`", disk.get_ref());
            Err(cx.mistake(disk.span().start, what, remedy))
        }
        (_, raw::DeviceKind::VirtioBlk) => Ok(()),
        _ => match other {
            Some(span) => {
                let what =
                    "`disk` is of virtio-blk, `queues` of that and virtio-net, and this is none";
                Err(cx.mistake(span.start, what.to_owned(), "leave them out"))
            }
            None => Ok(()),
        },
    }
}

/// The disks, and where their images come from: those in memory out of the boot archive, the others are on the second disk themselves.
pub fn lower(
    cx: &Context<'_>,
    raw: &raw::System,
    (files, second): (&mut Vec<(String, Source)>, &mut Vec<Partition>),
) -> Result<Vec<Disk>, Mistake> {
    let mut disks = Vec::new();
    for disk in &raw.disk {
        let (at, disk) = (disk.span().start, disk.get_ref());
        let name = disk.name.get_ref();
        let size = |value: &Option<Spanned<String>>| value.as_ref().map(|v| cx.size(v)).transpose();
        let mut bytes = size(&disk.size)?.unwrap_or(0);
        let on_second = disk.on == Some(raw::Home::SecondDisk);
        let mut of_second = None;
        if let Some(image) = &disk.image {
            let source = cx.source(image)?;
            // Of what xtask makes itself the length is not known yet; root compares it again.
            if let Source::File(path) = &source {
                let len = std::fs::metadata(path).map_or(0, |m| m.len());
                if bytes == 0 {
                    bytes = len.next_multiple_of(BLOCK);
                } else if len > bytes {
                    let what = format!("disk `{name}` is smaller than its image of {len} bytes");
                    return Err(cx.mistake(at, what, "give it a larger `size`, or none"));
                }
            } else if bytes == 0 {
                let what =
                    format!("disk `{name}` has no `size`, and that of its image is not known");
                return Err(cx.mistake(at, what, "write for example size = \"64M\""));
            }
            if on_second {
                of_second = Some(source);
            } else {
                files.push((disk_file(name), source));
            }
        }
        if on_second {
            disks.push(there(cx, at, disk, bytes)?);
            second.push(Partition {
                name: name.clone(),
                size: bytes,
                image: of_second,
            });
            continue;
        }
        let memory = match (size(&disk.memory)?, disk.read_only) {
            (None, true) => 0,
            (None, false) => bytes,
            (Some(memory), false) if memory > 0 => memory,
            _ => {
                let what = format!(
                    "disk `{name}`: memory is for what is written, and there is none, or nothing is written"
                );
                let remedy = "leave `memory` out, or `read_only`";
                return Err(cx.mistake(at, what, remedy));
            }
        };
        disks.push(Disk {
            name: name.clone(),
            size: bytes,
            image: disk.image.as_ref().map(|_| disk_file(name)),
            memory,
            serial: serial(disk),
            home: Home::Memory,
        });
    }
    Ok(disks)
}

/// As it is written, or the first letters of the name.
fn serial(disk: &raw::Disk) -> String {
    match &disk.serial {
        Some(serial) => serial.get_ref().clone(),
        None => disk.name.get_ref().chars().take(MAX_SERIAL).collect(),
    }
}

/// A disk on the second disk.
fn there(cx: &Context<'_>, at: usize, disk: &raw::Disk, bytes: u64) -> Result<Disk, Mistake> {
    let name = disk.name.get_ref();
    if let Some(memory) = &disk.memory {
        let what = format!("disk `{name}` is on the second disk, which takes what is written");
        let remedy = "leave `memory` out, or `on`";
        return Err(cx.mistake(memory.span().start, what, remedy));
    }
    if bytes == 0 {
        let what = format!("disk `{name}` has no `size` and no `image`");
        return Err(cx.mistake(at, what, "write for example size = \"64M\""));
    }
    Ok(Disk {
        name: name.clone(),
        size: bytes,
        image: None,
        memory: 0,
        serial: serial(disk),
        home: Home::SecondDisk {
            read_only: disk.read_only,
        },
    })
}
