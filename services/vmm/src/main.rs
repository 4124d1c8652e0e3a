//! The VMM of one VM: wires [`vmm::machine::Machine`] to the kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bare {
    extern crate alloc;

    use alloc::format;
    use alloc::vec::Vec;
    use core::arch::x86_64::{__cpuid_count, CpuidResult};
    use ipc_schema::manifest::Vm;
    use ipc_schema::proto::{RootRequest, RootResponse, VmmReport, VmmReportResponse};
    use runtime::abi::vm::{Event, Exit, PortAccess, Post, Segment, VcpuState};
    use runtime::abi::{NEVER, Status, Tag, layout::slot};
    use runtime::object::{GuestSpace, Vcpu};
    use runtime::shared::VcpuPage;
    use runtime::start::StartError;
    use runtime::{Endpoint, Message, Notification, StartInfo, time};
    use vmm::machine::{Device, Fatal, Kernel, Machine, Note, Parts, Ran};
    use vmm::memory::{GuestMemory, Region};

    runtime::entry!(main);

    /// Guest-physical address of the memory that did not fit below the PCI window.
    const HIGH_RAM: u64 = 1 << 32;
    /// How long the manager has to note a report, in microseconds.
    const REPORT_PATIENCE: u64 = 1_000_000;

    /// A device's capabilities.
    struct Server {
        endpoint: Endpoint,
        doorbells: Vec<Notification>,
    }

    /// The kernel proper.
    struct Host {
        vcpu: Vcpu,
        page: VcpuPage,
        guest: GuestSpace,
        servers: Vec<Server>,
        root: Endpoint,
    }

    impl Kernel for Host {
        #[inline(always)]
        fn run(
            &mut self,
            dirty: u64,
            post: Post,
            inject: Event,
            deadline: u64,
        ) -> Result<Ran, Status> {
            self.vcpu.run(&mut self.page, dirty, post, inject, deadline)
        }

        #[inline(always)]
        fn state(&self) -> &VcpuState {
            self.page.state()
        }

        #[inline(always)]
        fn state_mut(&mut self) -> &mut VcpuState {
            self.page.state_mut()
        }

        #[inline(always)]
        fn now(&self) -> u64 {
            time::now()
        }

        fn wait(&mut self, deadline: u64) -> Result<u64, Status> {
            match Notification(slot::NOTIFICATION).wait(deadline) {
                Err(Status::Timeout) => Ok(0),
                other => other,
            }
        }

        fn on_exit(&mut self, exit: Exit, groups: u64) -> Result<(), Status> {
            self.vcpu.on_exit(Some(exit), groups)
        }

        fn route(
            &mut self,
            device: usize,
            first: u16,
            count: u16,
            limit: u64,
        ) -> Result<(), Status> {
            let server = self.servers.get(device).ok_or(Status::InvalidArg)?;
            self.guest.route(first, count, server.endpoint, limit)
        }

        fn doorbell(
            &mut self,
            device: usize,
            bell: usize,
            first: u16,
            count: u16,
        ) -> Result<(), Status> {
            let server = self.servers.get(device).ok_or(Status::InvalidArg)?;
            let bell = *server.doorbells.get(bell).ok_or(Status::InvalidArg)?;
            self.guest.doorbell(first, count, bell, None)
        }

        fn ring(&mut self, device: usize, bell: usize) {
            let server = self.servers.get(device);
            if let Some(bell) = server.and_then(|s| s.doorbells.get(bell)) {
                let _ = bell.signal();
            }
        }

        fn unroute(&mut self, first: u16) -> Result<(), Status> {
            self.guest.unroute(first)
        }

        fn call_device(
            &mut self,
            device: usize,
            access: PortAccess,
            value: u32,
            limit: u64,
        ) -> Result<u32, Status> {
            let server = self.servers.get(device).ok_or(Status::InvalidArg)?;
            let message = Message::new(Tag::PORT, [access.0, value.into(), 0, 0]);
            let until = time::now().saturating_add(limit);
            let reply = server.endpoint.call_until(message, until)?;
            Ok(reply.words[0] as u32)
        }

        fn silent(&mut self, device: usize) {
            let device = u32::try_from(device).unwrap_or(u32::MAX);
            // It looks for itself; whatever it answers, the access is tried again.
            let _ = self.root.call_postcard_with::<_, RootResponse>(
                &RootRequest::Hung { device },
                &[],
                time::after(REPORT_PATIENCE),
            );
        }

        fn note(&mut self, note: &Note) {
            match *note {
                Note::OneVcpu { asked } => {
                    defmt::error!(
                        "{=u32} vCPUs asked for: this VMM runs one, and the guest sees one",
                        asked
                    );
                }
                Note::Unmapped { gpa, width, write } => {
                    defmt::warn!(
                        "nothing at {=u64:#x} ({=u8} bytes, write: {=bool})",
                        gpa,
                        width,
                        write
                    );
                }
                Note::RefusedMsr { index, value: None } => {
                    defmt::warn!("rdmsr {=u32:#x}: #GP", index)
                }
                Note::RefusedMsr {
                    index,
                    value: Some(value),
                } => {
                    defmt::warn!("wrmsr {=u32:#x} <- {=u64:#x}: #GP", index, value);
                }
                Note::Lost {
                    device,
                    access,
                    times,
                } => defmt::warn!(
                    "device {=usize} did not answer at port {=u16:#x} (taken: {=bool}), {=u32} in a row",
                    device,
                    access.port(),
                    access.taken(),
                    times
                ),
                Note::Dropped { device, access } => defmt::error!(
                    "device {=usize} dies of an access at port {=u16:#x} again and again: it is dropped",
                    device,
                    access.port()
                ),
                Note::Unrouted { device, status } => defmt::warn!(
                    "device {=usize}: status {=u64} for a route of its ports: they are forwarded",
                    device,
                    status as u64
                ),
                Note::HardwareApic => defmt::info!("the guest's local APIC is in hardware"),
                Note::Halted => defmt::warn!(
                    "the guest halted with interrupts disabled, at {=u64:#x}",
                    self.state().rip
                ),
                Note::Fatal(why) => {
                    fatal(&why);
                    registers(self.state());
                }
            }
        }
    }

    fn fatal(why: &Fatal) {
        match *why {
            Fatal::Shutdown => defmt::error!("triple fault"),
            Fatal::MachineCheck => defmt::error!("machine check"),
            Fatal::TaskSwitch([a, b, c]) => defmt::error!(
                "task switch, which is not supported: {=u64:#x} {=u64:#x} {=u64:#x}",
                a,
                b,
                c
            ),
            Fatal::EntryFailed([a, b, c]) => defmt::error!(
                "the processor refuses this state: {=u64:#x} {=u64:#x} {=u64:#x}",
                a,
                b,
                c
            ),
            Fatal::Other([a, b, c]) => defmt::error!(
                "exit without a handler: {=u64:#x} {=u64:#x} {=u64:#x}",
                a,
                b,
                c
            ),
            Fatal::Unsupported { what, gpa } => {
                let why = format!("{:?}", what.why);
                let bytes = what.bytes.get(..usize::from(what.len)).unwrap_or_default();
                let why = why.as_str();
                defmt::error!(
                    "cannot emulate ({=str}) at rip {=u64:#x}, access to {=u64:#x}: {=[u8]:x}",
                    why,
                    what.rip,
                    gpa,
                    bytes
                );
            }
            Fatal::Delivery { event, gpa } => {
                defmt::error!(
                    "delivery of event {=u64:#x} accessed {=u64:#x}, where no RAM is",
                    event,
                    gpa
                );
            }
            Fatal::Stuck => defmt::error!("the instruction at rip never fits its exit"),
            Fatal::Kernel(status) => {
                defmt::error!("the kernel refused: status {=u64}", status as u64)
            }
        }
    }

    /// All registers, in records that fit the log. Those of groups that the exit did not bring are older.
    fn registers(s: &VcpuState) {
        defmt::error!(
            "rip {=u64:#x} rsp {=u64:#x} rflags {=u64:#x} cpl {=u64} shadow {=u64}",
            s.rip,
            s.rsp,
            s.rflags,
            s.cpl,
            s.shadow
        );
        let [rax, rcx, rdx, rbx, _, rbp, rsi, rdi, ..] = s.gpr;
        defmt::error!(
            "rax {=u64:#x} rcx {=u64:#x} rdx {=u64:#x} rbx {=u64:#x}",
            rax,
            rcx,
            rdx,
            rbx
        );
        defmt::error!("rbp {=u64:#x} rsi {=u64:#x} rdi {=u64:#x}", rbp, rsi, rdi);
        let [.., r8, r9, r10, r11, r12, r13, r14, r15] = s.gpr;
        defmt::error!(
            "r8 {=u64:#x} r9 {=u64:#x} r10 {=u64:#x} r11 {=u64:#x}",
            r8,
            r9,
            r10,
            r11
        );
        defmt::error!(
            "r12 {=u64:#x} r13 {=u64:#x} r14 {=u64:#x} r15 {=u64:#x}",
            r12,
            r13,
            r14,
            r15
        );
        defmt::error!(
            "cr0 {=u64:#x} cr2 {=u64:#x} cr3 {=u64:#x} cr4 {=u64:#x} efer {=u64:#x}",
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer
        );
        defmt::error!(
            "dr6 {=u64:#x} dr7 {=u64:#x} xcr0 {=u64:#x} pat {=u64:#x}",
            s.dr6,
            s.dr7,
            s.xcr0,
            s.pat
        );
        let segments = [
            ("es", s.es),
            ("cs", s.cs),
            ("ss", s.ss),
            ("ds", s.ds),
            ("fs", s.fs),
            ("gs", s.gs),
            ("ldtr", s.ldtr),
            ("tr", s.tr),
            ("gdtr", s.gdtr),
            ("idtr", s.idtr),
        ];
        for (name, segment) in segments {
            let Segment {
                selector,
                attributes,
                limit,
                base,
            } = segment;
            defmt::error!(
                "{=str} {=u16:#x} base {=u64:#x} limit {=u32:#x} attributes {=u16:#x}",
                name,
                selector,
                base,
                limit,
                attributes
            );
        }
    }

    /// CPUID, which user level may execute.
    fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
        __cpuid_count(leaf, subleaf)
    }

    /// The guest's RAM as root has mapped it here.
    fn memory(start: &StartInfo) -> Result<GuestMemory, StartError> {
        let low = start.region("guest")?;
        let mut regions = alloc::vec![Region {
            gpa: 0,
            len: low.len,
            host: low.as_ptr()
        }];
        if let Ok(high) = start.region("guest-high") {
            regions.push(Region {
                gpa: HIGH_RAM,
                len: high.len,
                host: high.as_ptr(),
            });
        }
        // SAFETY: root mapped both regions, readable and writable, for as long as this server lives, one at
        // guest-physical 0 and below 4 GiB, the other at 4 GiB; nothing of Rust's is in guest memory, and no other
        // code here makes references to it.
        Ok(unsafe { GuestMemory::new(&regions) })
    }

    fn set_up(start: &'static StartInfo) -> Result<(Host, Parts<'static, 'static>), StartError> {
        let vm: &'static Vm =
            alloc::boxed::Box::leak(alloc::boxed::Box::new(start.config::<Vm>()?));
        let mut servers = Vec::new();
        let mut devices = Vec::new();
        for (i, device) in vm.devices.iter().enumerate() {
            let mut doorbells = Vec::new();
            if device.doorbell.is_some() {
                doorbells.push(start.notification(&format!("doorbell:{i}"))?);
            }
            for queue in 0..device.kind.queues() {
                doorbells.push(start.notification(&format!("queue:{i}:{queue}"))?);
            }
            servers.push(Server {
                endpoint: start.endpoint(&format!("dev:{i}"))?,
                doorbells,
            });
            let irq = start.interrupt_page(&format!("irq:{i}"))?;
            let state = start.state_page(&format!("state:{i}"))?;
            devices.push(Device::new(device, irq, state));
        }
        let host = Host {
            vcpu: Vcpu(start.cap("vcpu0")?),
            page: start.vcpu_page("vcpu0")?,
            guest: GuestSpace(start.cap("guest")?),
            servers,
            root: start.endpoint("root")?,
        };
        let parts = Parts {
            vm,
            memory: memory(start)?,
            kernel_file: start.file("kernel")?,
            initrd: match vm.initrd {
                Some(_) => Some(start.file("initrd")?),
                None => None,
            },
            devices,
            tsc_hz: start.tsc_hz,
            cpuid: &cpuid,
        };
        Ok((host, parts))
    }

    /// Tells the manager; true if it has noted it.
    fn report(manager: Endpoint, report: VmmReport) -> bool {
        let until = time::after(REPORT_PATIENCE);
        match manager.call_postcard_with::<_, VmmReportResponse>(&report, &[], until) {
            Ok(VmmReportResponse::Done) => true,
            Ok(VmmReportResponse::Refused(_)) => {
                defmt::warn!("the manager refuses the report");
                true
            }
            Err(_) => {
                defmt::warn!("the manager did not take the report");
                false
            }
        }
    }

    fn main(start: &'static StartInfo) -> ! {
        let (host, parts) = set_up(start).unwrap_or_else(|e| panic!("{e}"));
        let manager = start.endpoint("manager").unwrap_or_else(|e| panic!("{e}"));
        let memory = parts.vm.memory >> 20;
        let end = match Machine::new(host, parts) {
            Ok(mut machine) => {
                defmt::info!(
                    "{=str}: starts with {=u64} MiB, TSC {=u64}",
                    start.instance.as_str(),
                    memory,
                    runtime::now()
                );
                // A manager that is not there must not keep the guest from running.
                report(manager, VmmReport::Running);
                machine.run()
            }
            Err(error) => {
                defmt::error!("{=str}", format!("{error}").as_str());
                vmm::machine::End::Failed
            }
        };
        defmt::info!("ended: {=str}", format!("{end:?}").as_str());
        // The end must be known: root takes this server down only then.
        while !report(manager, VmmReport::Ended(end.into())) {
            let _ = Notification(slot::NOTIFICATION).wait(time::after(REPORT_PATIENCE / 4));
        }
        loop {
            let _ = Notification(slot::NOTIFICATION).wait(NEVER);
        }
    }
}
