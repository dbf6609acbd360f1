//! The guest's clock against real time, on a host that is simulated: fast or slow, late to
//! wake its threads, stopped for a while, lost and replaced by another one.

use bytes::Bytes;
use log_format::Event;
use machine::Machine;
use primary::{Recorder, RecorderConfig, Step};
use secondwind_tests::sim::ledger::{Operation, Request};
use secondwind_tests::sim::random::Random;
use secondwind_tests::sim::toy::{ToyConfig, ToyMachine};

const MICROSECOND_NS: u64 = 1_000;
const MILLISECOND_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000 * MILLISECOND_NS;
const HOUR_NS: u64 = 3_600 * SECOND_NS;

/// What is promised, at every moment at which the guest can look.
const ERROR_MAX_NS: i128 = 10 * MILLISECOND_NS as i128;

/// Guest nanoseconds per instruction of these machines: a slice is 32 us, as of the real one.
const INSTRUCTION_NS: u64 = 500;

fn recorder_config() -> RecorderConfig {
    RecorderConfig { slice_instructions: 64, ..RecorderConfig::default() }
}

/// What a guest is busy with.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// A tick each 4 ms that takes 24 us.
    Idle,
    /// Ticks that take most of the time to the next.
    Busy,
    /// Never waits.
    Full,
}

impl Load {
    fn machine(self) -> ToyMachine {
        let tick_units = match self {
            Load::Idle => 6,
            Load::Busy => 600,
            Load::Full => 40_000,
        };
        let config = ToyConfig { instruction_ns: INSTRUCTION_NS, tick_units, ..ToyConfig::default() };
        ToyMachine::new(config)
    }
}

/// How a host treats its processes.
#[derive(Debug, Clone, Copy)]
struct Host {
    /// Real picoseconds per guest instruction, least and most. The guest keeps up below
    /// `INSTRUCTION_NS`.
    instruction_ps: (u64, u64),
    /// By how much a sleeping thread wakes late, at most.
    late_ns: u64,
    /// How often, in thousandths of the steps, the process stands still, and how long at most.
    stops: (u64, u64),
}

const GOOD_HOST: Host =
    Host { instruction_ps: (50_000, 400_000), late_ns: 200 * MICROSECOND_NS, stops: (0, 0) };
const SLOW_HOST: Host =
    Host { instruction_ps: (200_000, 4_000_000), late_ns: 3 * MILLISECOND_NS, stops: (0, 0) };
const STARVED_HOST: Host =
    Host { instruction_ps: (100_000, 3_000_000), late_ns: 40 * MILLISECOND_NS, stops: (2, 5 * SECOND_NS) };

/// A recorder on a host. Real time is the simulation's; the host's clock shows it with an
/// offset of its own.
struct Live {
    random: Random,
    host: Host,
    recorder: Recorder<ToyMachine>,
    /// Real time.
    now_ns: u64,
    /// The host's monotonic clock minus real time.
    host_offset_ns: u64,
    /// Guest time minus real time, as it must stay.
    guest_offset_ns: i128,
    guest_ns: u64,
    requests: u64,
    clock_advances: u64,
    /// Further behind or ahead it never was when the guest could look.
    worst_behind_ns: i128,
    worst_ahead_ns: i128,
}

impl Live {
    fn new(seed: u64, load: Load, host: Host) -> Live {
        let mut random = Random::new(seed);
        let now_ns = random.between(0, HOUR_NS);
        let host_offset_ns = random.between(0, HOUR_NS);
        let recorder = Recorder::new(load.machine(), recorder_config(), 0, now_ns + host_offset_ns);
        Live {
            random,
            host,
            recorder,
            now_ns,
            host_offset_ns,
            guest_offset_ns: -i128::from(now_ns),
            guest_ns: 0,
            requests: 0,
            clock_advances: 0,
            worst_behind_ns: 0,
            worst_ahead_ns: 0,
        }
    }

    fn host_now_ns(&self) -> u64 {
        self.now_ns + self.host_offset_ns
    }

    /// Compares guest time with real time: the guest can look now.
    fn look(&mut self, guest_ns: u64, real_ns: u64) {
        let error_ns = i128::from(guest_ns) - (i128::from(real_ns) + self.guest_offset_ns);
        self.worst_behind_ns = self.worst_behind_ns.max(-error_ns);
        self.worst_ahead_ns = self.worst_ahead_ns.max(error_ns);
        assert!(guest_ns >= self.guest_ns, "guest time went back from {} to {guest_ns}", self.guest_ns);
        self.guest_ns = guest_ns;
    }

    /// One turn of the machine's thread.
    fn turn(&mut self) {
        let icount_before = self.recorder.moment().icount;
        let step = self.recorder.step(self.host_now_ns());
        let after = self.recorder.moment();
        let executed = after.icount - icount_before;
        let began_ns = self.now_ns;
        self.now_ns += MICROSECOND_NS;
        if executed > 0 {
            // Before its instructions, every advance of guest time had happened.
            self.look(after.time_ns - executed * INSTRUCTION_NS, began_ns);
            let (least_ps, most_ps) = self.host.instruction_ps;
            self.now_ns = began_ns + executed * self.random.between(least_ps, most_ps) / 1000;
            self.look(after.time_ns, self.now_ns);
        }
        self.recorded();
        if let Step::Sleep { until_ns } = step {
            let until_ns = until_ns.expect("ticks come for ever") - self.host_offset_ns;
            let late_ns = self.random.between(0, self.host.late_ns) * self.random.between(0, 100) / 100;
            self.now_ns = self.now_ns.max(until_ns + late_ns);
        }
        if self.random.chance(self.host.stops.0) {
            self.now_ns += self.random.between(0, self.host.stops.1);
        }
    }

    fn recorded(&mut self) {
        let Some(recorded) = self.recorder.take_recorded(self.host_now_ns()) else { return };
        let advances = recorded.events.iter().filter(|e| matches!(e.event, Event::ClockAdvance { .. }));
        self.clock_advances += advances.count() as u64;
    }

    fn request(&mut self) {
        self.requests += 1;
        let operation = Operation::Append(self.random.next_u64());
        let request = Request { client: 1, number: self.requests, operation };
        let event = Event::NetworkIn { port: 0, frame: request.to_frame() };
        self.recorder.handle_input(event, self.host_now_ns());
    }

    fn run(&mut self, span_ns: u64, request_chance: u64) {
        let end_ns = self.now_ns + span_ns;
        while self.now_ns < end_ns {
            if self.random.chance(request_chance) {
                self.request();
            }
            self.turn();
        }
    }

    /// The host is lost; another one, whose clock shows something else, takes over after
    /// `gap_ns`, with an offset that was learned from messages `delay_ns` old.
    fn take_over(mut self, gap_ns: u64, delay_ns: u64) -> Live {
        let offset_ns = self.recorder.clock_offset_ns();
        let events = self.recorder.events_before();
        let old_host_offset_ns = self.host_offset_ns;
        self.now_ns += gap_ns;
        self.host_offset_ns = self.random.between(0, 2 * HOUR_NS);
        let learned_ns = i128::from(offset_ns) + i128::from(old_host_offset_ns)
            - i128::from(self.host_offset_ns)
            - i128::from(delay_ns);
        let learned_ns = i64::try_from(learned_ns).expect("hours");
        let (machine, now_ns) = (self.recorder.into_machine(), self.now_ns + self.host_offset_ns);
        let recorder = Recorder::take_over(machine, recorder_config(), events, learned_ns, now_ns);
        Live { recorder, guest_offset_ns: self.guest_offset_ns - i128::from(delay_ns), ..self }
    }
}

#[test]
fn guest_time_stays_within_10_ms_of_real_time_whatever_the_load_and_the_host() {
    for (number, load) in [Load::Idle, Load::Busy, Load::Full].into_iter().enumerate() {
        for (host, requests) in [(GOOD_HOST, 0), (GOOD_HOST, 30), (SLOW_HOST, 5), (STARVED_HOST, 20)] {
            for seed in 0..8 {
                let mut live = Live::new(seed * 3 + number as u64, load, host);
                live.run(2 * SECOND_NS, requests);
                let case = format!("{load:?} on {host:?}, seed {seed}");
                assert!(live.worst_behind_ns <= ERROR_MAX_NS, "{} ns behind: {case}", live.worst_behind_ns);
                // Ahead is at most one slice, on a host that executes it in no time.
                let slice_ns = i128::from(recorder_config().slice_instructions * INSTRUCTION_NS);
                assert!(live.worst_ahead_ns <= slice_ns, "{} ns ahead: {case}", live.worst_ahead_ns);
            }
        }
    }
}

#[test]
fn a_host_that_cannot_keep_up_logs_few_advances_and_an_idle_guest_none() {
    let mut idle = Live::new(1, Load::Idle, GOOD_HOST);
    idle.run(60 * SECOND_NS, 0);
    assert_eq!(idle.clock_advances, 0, "an idle guest follows real time by itself");
    let mut late = Live::new(1, Load::Idle, Host { late_ns: 7 * MILLISECOND_NS, ..GOOD_HOST });
    late.run(20 * SECOND_NS, 0);
    assert_eq!(late.clock_advances, 0, "being late at a wake heals at the next wait");
    let mut full = Live::new(1, Load::Full, SLOW_HOST);
    full.run(10 * SECOND_NS, 0);
    // Each makes good at least 5 ms.
    assert!((100..=2_000).contains(&full.clock_advances), "{} in 10 s", full.clock_advances);
}

#[test]
fn after_a_stop_of_an_hour_the_first_slice_is_right_again() {
    for load in [Load::Idle, Load::Busy, Load::Full] {
        let mut live = Live::new(9, load, GOOD_HOST);
        live.run(SECOND_NS, 10);
        let advances_before = live.clock_advances;
        live.now_ns += HOUR_NS;
        live.run(SECOND_NS, 10);
        assert!(live.worst_behind_ns <= ERROR_MAX_NS, "{load:?}: {} ns", live.worst_behind_ns);
        assert_eq!(live.clock_advances - advances_before, 1, "{load:?}");
    }
}

#[test]
fn a_takeover_after_an_hour_is_right_at_once_and_never_goes_back() {
    for load in [Load::Idle, Load::Busy, Load::Full] {
        for seed in 0..6 {
            let mut live = Live::new(seed, load, GOOD_HOST);
            for gap_ns in [20 * MILLISECOND_NS, HOUR_NS, 100 * HOUR_NS, 0] {
                live.run(SECOND_NS, 10);
                let advances_before = live.clock_advances;
                let delay_ns = live.random.between(0, 2 * MILLISECOND_NS);
                live = live.take_over(gap_ns, delay_ns);
                live.run(SECOND_NS, 10);
                // Of the real clock, the guest's differs by what the way of a message hides too.
                let worst_ns = live.worst_behind_ns + i128::from(delay_ns);
                assert!(worst_ns <= ERROR_MAX_NS, "{load:?}, {gap_ns} ns later: {worst_ns} ns");
                let advances = live.clock_advances - advances_before;
                let expected = u64::from(gap_ns >= 20 * MILLISECOND_NS);
                assert_eq!(advances, expected, "{load:?}, {gap_ns} ns later");
            }
        }
    }
}

#[test]
fn an_offset_of_a_clock_that_is_behind_never_takes_guest_time_back() {
    let mut live = Live::new(4, Load::Busy, GOOD_HOST);
    live.run(SECOND_NS, 10);
    let (events, machine) = (live.recorder.events_before(), live.recorder.into_machine());
    let here = machine.moment();
    for offset_ns in [i64::MIN, -(HOUR_NS as i64), 0] {
        let mut machine = Load::Busy.machine();
        machine.inject(&Event::Entropy(Bytes::from_static(b"seed")));
        machine.inject(&Event::ClockAdvance { delta_ns: here.time_ns });
        let mut recorder = Recorder::take_over(machine, recorder_config(), events, offset_ns, 5 * HOUR_NS);
        recorder.step(5 * HOUR_NS);
        assert!(recorder.moment().time_ns >= here.time_ns);
    }
}
