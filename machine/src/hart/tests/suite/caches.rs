//! Caches that must not be seen, and that must be fast.

use super::encode::*;
use super::*;
use crate::hart::Watched;

#[test]
fn a_store_to_the_next_instruction_is_executed() {
    let new = addi(A0, A0, 100);
    let mut code = load_constant(T0, u64::from(new));
    code.extend([auipc(T1, 0), sw(T0, T1, 8), addi(A0, A0, 1), NOP]);
    let (mut hart, mut bus) = machine_with(&code);
    run(&mut hart, &mut bus, code.len() as u64);
    assert_eq!(hart.register(A0 as usize), 100);
}

#[test]
fn a_write_by_a_device_to_code_is_executed() {
    let (mut hart, mut bus) = machine_with(&[addi(A0, A0, 1), jal(ZERO, -4)]);
    run(&mut hart, &mut bus, 10);
    assert_eq!(hart.register(A0 as usize), 5);
    bus.put_code(RAM_BASE, &[addi(A0, A0, 10)]);
    run(&mut hart, &mut bus, 2);
    assert_eq!(hart.register(A0 as usize), 15);
}

#[test]
fn a_write_by_another_hart_to_code_is_executed() {
    let (mut first, mut bus) = machine_with(&[addi(A0, A0, 1), jal(ZERO, -4)]);
    let mut second = Hart::new(1, options());
    second.start_machine(RAM_BASE, 0, 0);
    run(&mut first, &mut bus, 10);
    run(&mut second, &mut bus, 10);
    bus.put_code(RAM_BASE, &[addi(A0, A0, 10)]);
    run(&mut first, &mut bus, 2);
    run(&mut second, &mut bus, 2);
    assert_eq!((first.register(A0 as usize), second.register(A0 as usize)), (15, 15));
}

#[test]
fn a_store_beside_code_in_its_page_keeps_the_blocks() {
    let code = [auipc(T1, 0), sd(A0, T1, 1024), addi(A0, A0, 1), jal(ZERO, -8)];
    let (mut hart, mut bus) = machine_with(&code);
    run(&mut hart, &mut bus, 100);
    let before = bus.ram.code_generation();
    run(&mut hart, &mut bus, 3000);
    assert_eq!(bus.ram.code_generation(), before);
    assert_eq!(bus.at(RAM_BASE + 1024), hart.register(A0 as usize) - 1);
}

#[test]
fn an_instruction_that_straddles_two_pages_follows_both() {
    let (mut hart, mut bus) = machine_with(&[jal(ZERO, 0xffc)]);
    let at = RAM_BASE + 0xffc;
    // Two compressed no-ops' room, then four bytes across the boundary.
    bus.ram.write(at, &[0x01, 0x00]).unwrap();
    bus.ram.write(at + 2, &addi(A0, A0, 1).to_le_bytes()).unwrap();
    bus.ram.write(at + 6, &jal(ZERO, -6).to_le_bytes()).unwrap();
    run(&mut hart, &mut bus, 1 + 3 * 10);
    assert_eq!(hart.register(A0 as usize), 10);
    bus.ram.write(at + 2, &addi(A0, A0, 32).to_le_bytes()).unwrap();
    run(&mut hart, &mut bus, 3);
    assert_eq!(hart.register(A0 as usize), 42);
    bus.ram.write(RAM_BASE + 0x1000, &addi(A0, A0, 16).to_le_bytes()[2..]).unwrap();
    run(&mut hart, &mut bus, 3);
    assert_eq!(hart.register(A0 as usize), 58);
}

#[test]
fn another_memory_is_not_taken_for_the_first() {
    let (mut hart, mut bus) = machine_with(&[auipc(T0, 0), ld(A0, T0, 64), sd(A0, T0, 128), jal(ZERO, -12)]);
    bus.put(RAM_BASE + 64, 1);
    run(&mut hart, &mut bus, 400);
    let (_, mut other) = machine_with(&[auipc(T0, 0), ld(A0, T0, 64), sd(A0, T0, 128), jal(ZERO, -12)]);
    other.put(RAM_BASE + 64, 2);
    run(&mut hart, &mut other, 400);
    assert_eq!((bus.at(RAM_BASE + 128), other.at(RAM_BASE + 128)), (1, 2));
}

#[test]
fn stores_to_the_watched_page_reach_the_bus() {
    let page = RAM_BASE + 0x1000;
    let mut bus = TestBus::new();
    bus.put_code(RAM_BASE, &[lui(T1, 1), auipc(T0, 1), addi(A0, ZERO, 7), sd(A0, T0, -4), sd(A0, T0, -12)]);
    let watched = Some(Watched { start: page, end: page + 0x1000 });
    let mut hart = Hart::new(0, HartOptions { watched, ..options() });
    hart.start_machine(RAM_BASE, 0, 0);
    run(&mut hart, &mut bus, 5);
    assert_eq!(bus.log, [(3, 7)]);
    assert_eq!(bus.at(page), 7);
}

#[test]
fn what_lies_beside_the_watched_bytes_is_ordinary_memory() {
    let tohost = RAM_BASE + 0x1008;
    let mut bus = TestBus::new();
    let atomic = |offset| [addi(T1, T0, offset), amoadd_d(ZERO, A0, T1)];
    // Misaligned, up to the watched bytes and from them on; then an atomic on each side.
    let mut code = vec![auipc(T0, 1), addi(A0, ZERO, 7), sd(A0, T0, -1), sw(A0, T0, 17)];
    code.extend(atomic(0).into_iter().chain(atomic(16)));
    code.extend([sd(A0, T0, 8), sw(A0, T0, 5)]);
    bus.put_code(RAM_BASE, &code);
    let watched = Some(Watched { start: tohost, end: tohost + 8 });
    let mut hart = Hart::new(0, HartOptions { watched, ..options() });
    hart.start_machine(RAM_BASE, 0, 0);
    run(&mut hart, &mut bus, code.len() as u64);
    assert_eq!((bus.at(tohost - 8), bus.at(tohost + 8)), (7, 7 + (7 << 8)));
    assert_eq!(bus.log, [(8, 7)], "the store to the watched bytes");
    let csrs = hart.state().csrs;
    assert_eq!((csrs.mcause, csrs.mtval), (7, tohost - 3), "a misaligned store into them");
}

/// A bus that notes how deep the stack is at each access.
struct StackBus {
    inner: TestBus,
    depths: Vec<usize>,
}

impl Bus for StackBus {
    fn ram(&mut self) -> &mut Ram {
        self.inner.ram()
    }

    fn mmio_read(&mut self, _: usize, _: u64, _: u64, _: u8) -> Result<u64, AccessFault> {
        Err(AccessFault)
    }

    fn mmio_write(&mut self, _: usize, _: u64, _: u64, _: u8, _: u64) -> Result<(), AccessFault> {
        let here = 0u8;
        self.depths.push(std::ptr::addr_of!(here) as usize);
        Ok(())
    }

    fn time(&self, icount: u64) -> u64 {
        icount
    }

    fn interrupt_lines(&self, _: usize) -> u64 {
        0
    }

    fn wants_exit(&self) -> bool {
        false
    }
}

/// Instructions of every kind. x5 points to a page of data, x6 to the program's own page, x7 to
/// where two pages meet.
const SAMPLES: &[(u32, &str)] = &[
    (0x023170d3, "fadd.d f1,f2,f3"),
    (0x103170d3, "fmul.s f1,f2,f3"),
    (0x1a3170d3, "fdiv.d f1,f2,f3"),
    (0x5a0170d3, "fsqrt.d f1,f2"),
    (0x580170d3, "fsqrt.s f1,f2"),
    (0x223170c3, "fmadd.d f1,f2,f3,f4"),
    (0x203170cb, "fnmsub.s f1,f2,f3,f4"),
    (0x2a3100d3, "fmin.d f1,f2,f3"),
    (0x223100d3, "fsgnj.d f1,f2,f3"),
    (0xa23125d3, "feq.d x11,f2,f3"),
    (0xe00115d3, "fclass.s x11,f2"),
    (0xc22175d3, "fcvt.l.d x11,f2"),
    (0xc01175d3, "fcvt.wu.s x11,f2"),
    (0xd235f0d3, "fcvt.d.lu f1,x11"),
    (0xd005f0d3, "fcvt.s.w f1,x11"),
    (0x401170d3, "fcvt.s.d f1,f2"),
    (0x420100d3, "fcvt.d.s f1,f2"),
    (0xf20580d3, "fmv.d.x f1,x11"),
    (0xe20085d3, "fmv.x.d x11,f1"),
    (0x0082b087, "fld f1,8(x5)"),
    (0x0082a087, "flw f1,8(x5)"),
    (0x0012b427, "fsd f1,8(x5)"),
    (0x0012a427, "fsw f1,8(x5)"),
    (0x7fc2b583, "ld x11,2044(x5)"),
    (0x00b2b0a3, "sd x11,1(x5)"),
    (0x10b33023, "sd x11,256(x6)"),
    (0x10133027, "fsd f1,256(x6)"),
    (0xffd3b583, "ld x11,-3(x7)"),
    (0xfeb3bea3, "sd x11,-3(x7)"),
    (0xffd3b087, "fld f1,-3(x7)"),
    (0x1002b5af, "lr.d x11,(x5)"),
    (0x18b2b5af, "sc.d x11,x11,(x5)"),
    (0x00b2b5af, "amoadd.d x11,x11,(x5)"),
    (0x00b325af, "amoadd.w x11,x11,(x6)"),
    (0xb02025f3, "csrrs x11,minstret,x0"),
    (0x34059073, "csrrw x0,mscratch,x11"),
    (0x02c5c5b3, "div x11,x11,x12"),
    (0x02c595b3, "mulh x11,x11,x12"),
    (0x0042a00f, "cbo.zero (x5)"),
    (0x0022a00f, "cbo.flush (x5)"),
    (0x60259593, "cpop x11,x11"),
];

/// Ops hand over by jumps where the compiler makes jumps of calls in tail position. Speed
/// depends on it: were they calls, thousands of them would take much more stack than this.
#[test]
fn ops_hand_over_without_stack() {
    const LIMIT_BYTES: usize = 16 << 10;
    for &(sample, name) in SAMPLES {
        let mut inner = TestBus::new();
        let body = [sample, sample, sample, sample, sample, sample, addi(A0, A0, -1), bne(A0, ZERO, -28)];
        inner.put_code(RAM_BASE, &[sd(ZERO, A3, 0)]);
        inner.put_code(RAM_BASE + 4, &body);
        inner.put_code(RAM_BASE + 36, &[sd(ZERO, A3, 0)]);
        let mut bus = StackBus { inner, depths: Vec::new() };
        let mut hart = Hart::new(0, options());
        hart.start_machine(RAM_BASE, 500, 0);
        let mut state = hart.state();
        state.csrs.mstatus |= 1 << 13;
        hart.set_state(state);
        hart.set_register(A3 as usize, LOG_DEVICE);
        hart.set_register(T0 as usize, RAM_BASE + 0x2000);
        hart.set_register(T1 as usize, RAM_BASE);
        hart.set_register(T2 as usize, RAM_BASE + 0x3000);
        hart.run(&mut bus, 0, 4002);
        let [first, last] = bus.depths[..] else { panic!("{name}: {} stores", bus.depths.len()) };
        assert!(first.abs_diff(last) < LIMIT_BYTES, "{name}: {} bytes", first.abs_diff(last));
    }
}
