//! CPUID: its values, its lengths with legal prefixes, its code rewritten and remapped.

use exerciser::boot::BootInfo;
use exerciser::cpu::{self, cpuid};
use exerciser::exec::{self, Registers};
use exerciser::{clock, paging};

use crate::check::{Case, Check, MARK, Stop, compare, ensure, equal, pattern, probe};

pub const CASES: &[Case] = &[
    Case::new("cpuid-leaves", leaves),
    Case::vireo("cpuid-hypervisor", hypervisor),
    Case::vireo("cpuid-hidden", hidden),
    Case::new("cpuid-dynamic", dynamic),
    Case::new("cpuid-prefixes", prefixes),
    Case::new("cpuid-rewritten", rewritten),
    Case::new("cpuid-alias", alias),
    Case::new("cpuid-page", page),
    Case::new("cpuid-page-remapped", page_remapped),
];

/// CPUID behind every kind of prefix that is legal there.
const FORMS: &[&[u8]] = &[
    &[0x0f, 0xa2],
    &[0x66, 0x0f, 0xa2],
    &[0x48, 0x0f, 0xa2],
    &[0x67, 0x0f, 0xa2],
    &[0xf2, 0x0f, 0xa2],
    &[0xf3, 0x0f, 0xa2],
    &[0x2e, 0x0f, 0xa2],
    &[0x65, 0x0f, 0xa2],
    &[0x4f, 0x0f, 0xa2],
    &[0x66, 0x67, 0xf3, 0x36, 0x41, 0x0f, 0xa2],
    // A REX that another prefix follows is void, and counts all the same.
    &[0x48, 0x66, 0x0f, 0xa2],
    &[
        0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0xa2,
    ],
];

/// Registers before CPUID of leaf 0 and those expected after.
fn leaf_zero() -> (Registers, Registers) {
    let plain = cpuid(0, 0);
    let before = Registers {
        rax: 0xffff_ffff_0000_0000,
        rcx: 0xffff_ffff_0000_0000,
        ..pattern()
    };
    let wide = u64::from;
    let after = Registers {
        rax: wide(plain.eax),
        rbx: wide(plain.ebx),
        rcx: wide(plain.ecx),
        rdx: wide(plain.edx),
        ..before
    };
    (before, after)
}

fn leaves(_: &BootInfo) -> Check {
    let first = cpuid(0, 0);
    ensure!(
        (1..0x1000).contains(&first.eax),
        "highest basic leaf {:#x}",
        first.eax
    );
    ensure!(
        first.ebx != 0 && first.ecx != 0 && first.edx != 0,
        "no vendor: {first:x?}"
    );
    let features = cpuid(1, 0);
    equal!(features.edx & 1 << 9, 1 << 9, "APIC bit");
    equal!(features.edx & 1 << 4, 1 << 4, "TSC bit");
    equal!(features.ebx >> 24, 0, "initial APIC ID");
    ensure!(
        cpuid(0x8000_0000, 0).eax >= 0x8000_0008,
        "extended leaves end too early"
    );
    ensure!(cpuid(0x8000_0001, 0).edx & 1 << 29 != 0, "no long mode");
    let bits = cpuid(0x8000_0008, 0).eax;
    ensure!(
        (36..=52).contains(&(bits & 0xff)),
        "physical address bits {}",
        bits & 0xff
    );
    for leaf in [
        2,
        5,
        6,
        0xa,
        0xb,
        0x15,
        0x16,
        0x1f,
        0x8000_0007,
        0x8000_000a,
        0x8000_001f,
        0xffff_ffff,
    ] {
        equal!(cpuid(leaf, 0), cpuid(leaf, 0), "leaf {leaf:#x} read twice");
    }
    let (before, after) = leaf_zero();
    probe(&[0x0f, 0xa2], before, after)
}

fn hypervisor(_: &BootInfo) -> Check {
    ensure!(cpuid(1, 0).ecx & 1 << 31 != 0, "no hypervisor bit");
    ensure!(
        cpu::on_vireo(),
        "the signature is {:x?}",
        cpuid(0x4000_0000, 0)
    );
    let highest = cpuid(0x4000_0000, 0).eax;
    ensure!(
        (0x4000_0010..0x4000_1000).contains(&highest),
        "highest hypervisor leaf {highest:#x}"
    );
    let found = cpuid(0x4000_0010, 0);
    let measured = clock::hz() / 1000;
    let told = u64::from(found.eax);
    ensure!(
        told.abs_diff(measured) <= measured / 10,
        "TSC said {told} kHz, measured {measured} kHz"
    );
    ensure!(found.ebx >= 1000, "APIC bus {} kHz", found.ebx);
    Ok(())
}

fn hidden(_: &BootInfo) -> Check {
    let basic = cpuid(1, 0).ecx;
    equal!(basic & 1 << 5, 0, "VMX bit");
    equal!(basic & 1 << 3, 0, "MONITOR bit");
    equal!(cpuid(0x8000_0001, 0).ecx & 1 << 2, 0, "SVM bit");
    let svm = cpuid(0x8000_000a, 0);
    equal!(
        (svm.eax, svm.ebx, svm.ecx, svm.edx),
        (0, 0, 0, 0),
        "SVM leaf"
    );
    let seven = cpuid(7, 0);
    equal!(seven.ecx & 1 << 7, 0, "CET shadow stack bit");
    equal!(
        seven.edx & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25),
        0,
        "CET IBT and AMX bits"
    );
    equal!(cpuid(0xa, 0).eax & 0xff, 0, "performance counters");
    Ok(())
}

/// Bits that follow the guest's control registers: OSXSAVE and the XSAVE area's size.
fn dynamic(_: &BootInfo) -> Check {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        return Err(Stop::Skip("no XSAVE"));
    }
    let old = cpu::cr4();
    for on in [true, false, true] {
        // SAFETY: CPUID says that the bit exists; it harms nothing.
        unsafe { cpu::set_cr4(if on { old | OSXSAVE } else { old & !OSXSAVE }) };
        equal!(
            cpuid(1, 0).ecx >> 27 & 1,
            u32::from(on),
            "OSXSAVE as CR4 has it"
        );
    }
    let supported = u64::from(cpuid(0xd, 0).eax);
    let mut sizes = [0; 2];
    for (size, xcr0) in sizes.iter_mut().zip([1, supported & 7]) {
        let mut registers = Registers {
            rax: xcr0,
            ..Registers::default()
        };
        exec::run(&[0x0f, 0x01, 0xd1], &mut registers)?;
        *size = cpuid(0xd, 0).ebx;
    }
    // SAFETY: the value it had.
    unsafe { cpu::set_cr4(old) };
    equal!(sizes[0], 576, "XSAVE area with XCR0 = 1");
    if supported & 4 != 0 {
        let avx = cpuid(0xd, 2);
        equal!(sizes[1], avx.eax + avx.ebx, "XSAVE area with AVX");
    }
    Ok(())
}

fn prefixes(_: &BootInfo) -> Check {
    let (before, after) = leaf_zero();
    FORMS.iter().try_for_each(|form| probe(form, before, after))
}

/// Code changed between runs at the same address: no length may be remembered.
fn rewritten(_: &BootInfo) -> Check {
    let (before, after) = leaf_zero();
    for round in 0..4 {
        for first in FORMS {
            for second in FORMS.iter().skip(round).step_by(4) {
                probe(first, before, after)?;
                probe(second, before, after)?;
            }
        }
    }
    Ok(())
}

/// The page that [`alias`] and [`page`] run in, and the one behind it.
const HERE: u64 = paging::WINDOW + 0x10_0000;

/// Writes `form`, [`MARK`] and RET into frame `index` at `offset`.
fn place(index: usize, offset: usize, form: &[u8]) {
    paging::fill(index, offset, form);
    paging::fill(index, offset + form.len(), &MARK);
    paging::fill(index, offset + form.len() + 4, &[0xc3]);
}

/// Runs what stands at `address`: a form of CPUID, [`MARK`], RET.
fn run_there(address: u64, form: &[u8]) -> Check {
    let (before, mut expected) = leaf_zero();
    let mut after = before;
    // SAFETY: the code is CPUID, LEA on R15 and RET.
    unsafe { exec::run_at(address, form.len() as u64 + 4, &mut after)? };
    expected.r15 += 1;
    compare(form, &after, &expected)
}

/// Code changed through another mapping of its frame, and the mapping itself changed.
fn alias(_: &BootInfo) -> Check {
    for round in 0..3 {
        for (index, form) in FORMS.iter().enumerate() {
            let frame = (index + round) & 3;
            place(frame, 0x100, form);
            ensure!(
                paging::map(HERE, Some(paging::frame(frame)), false),
                "no page tables left"
            );
            if round & 1 == 0 {
                paging::invalidate(HERE)
            } else {
                paging::reload()
            }
            run_there(HERE + 0x100, form)?;
            let next = FORMS[(index + 5) % FORMS.len()];
            place(frame, 0x100, next);
            run_there(HERE + 0x100, next)?;
        }
    }
    Ok(())
}

/// The instruction lies across two pages whose frames are no neighbours.
fn page(_: &BootInfo) -> Check {
    for form in FORMS {
        for split in 1..form.len() {
            for second in [2, 4] {
                // What a fetch by physical address would find instead.
                paging::fill(1, 0, &[0xcc; 32]);
                paging::fill(3, 0, &[0xcc; 32]);
                let frames = [0, second];
                let (head, tail) = form.split_at(split);
                paging::fill(frames[0], 4096 - split, head);
                place(frames[1], 0, tail);
                for (index, frame) in frames.into_iter().enumerate() {
                    let address = HERE + index as u64 * paging::PAGE;
                    ensure!(
                        paging::map(address, Some(paging::frame(frame)), false),
                        "no page tables left"
                    );
                    paging::invalidate(address);
                }
                run_there(HERE + 4096 - split as u64, form)?;
            }
        }
    }
    Ok(())
}

/// The same first byte, continued by frames with other lengths. (Bochs 2.7 fails this: it keeps
/// what it decoded across two pages.)
fn page_remapped(info: &BootInfo) -> Check {
    if info.command_line.value("emulator") == Some("bochs") {
        return Err(Stop::Skip("Bochs keeps what it decoded across two pages"));
    }
    ensure!(
        paging::map(HERE, Some(paging::frame(0)), false),
        "no page tables left"
    );
    paging::invalidate(HERE);
    paging::fill(0, 4095, &[0x66]);
    place(2, 0, &[0x0f, 0xa2]);
    place(4, 0, &[0x67, 0x66, 0x0f, 0xa2]);
    for round in 0..6 {
        let (frame, form): (_, &[u8]) = if round & 1 == 0 {
            (2, &[0x66, 0x0f, 0xa2])
        } else {
            (4, &[0x66, 0x67, 0x66, 0x0f, 0xa2])
        };
        ensure!(
            paging::map(HERE + paging::PAGE, Some(paging::frame(frame)), false),
            "no page tables left"
        );
        paging::invalidate(HERE + paging::PAGE);
        run_there(HERE + 4095, form)?;
    }
    Ok(())
}
