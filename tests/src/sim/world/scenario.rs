//! Named scenarios: what once went wrong, step by step. A seed that found something is lost with the
//! next change of the simulator; these stay.
//!
//! Each runs in a world without faults but those of its script, for several seeds: these draw the
//! delays of messages and what clients ask.

use log_format::{FrameKind, ProtectionMode};
use machine::CheckpointExtent;
use primary::{MachineRequest, ModeChoice, OnBackupLoss, Release, Trigger};

use super::*;

/// Virtual time within which a step of a script must come about.
const PATIENCE_NS: u64 = 20_000 * MILLISECOND_NS;
/// Seeds of each scenario.
const SEEDS: std::ops::Range<u64> = 0..12;

/// A scripted world, and what came of it.
type Script = fn(&mut World) -> Result<(), String>;

/// Runs a script for several seeds.
///
/// # Errors
/// What went wrong, or which step did not come about.
fn play(shape: Shape, script: Script) -> Result<Coverage, String> {
    let mut coverage = Coverage::default();
    for seed in SEEDS {
        let options = Options { faults: false, ..Options::new(seed) };
        let plan = Plan::new((FaultKind::Pause, FaultKind::Pause));
        let mut world = World::of(options, shape, plan, Random::new(seed));
        let told = script(&mut world).and_then(|()| match world.checks.violations() {
            [] => Ok(()),
            violations => Err(violations.join("; ")),
        });
        told.map_err(|text| {
            let states: Vec<String> = world.nodes.iter().map(describe).collect();
            format!("seed {seed}: {text}; nodes: {states:?}; record: {:?}", world.record())
        })?;
        coverage.merge(world.coverage);
    }
    Ok(coverage)
}

fn shape(hosts: usize, mode: ProtectionMode) -> Shape {
    Shape {
        hosts,
        backups_max: hosts - 1,
        release: Release::All,
        policy: OnBackupLoss::Continue,
        mode: ModeChoice::Fixed(mode),
        trigger: Trigger::Clock,
        durable: false,
        logs: false,
        leases: false,
        latency_ns: (100_000, 900_000),
    }
}

impl World {
    /// Lets things happen, one after the other, until it is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) -> Result<(), String> {
        self.until_without(what, |_| false, |world, _| is_so(world)).map(drop)
    }

    /// The same, while some things do not happen; returns those, in order.
    fn until_without(
        &mut self,
        what: &str,
        waits: impl Fn(&What) -> bool,
        is_so: impl Fn(&World, &[What]) -> bool,
    ) -> Result<Vec<What>, String> {
        let due_ns = self.now_ns + PATIENCE_NS;
        let mut withheld = Vec::new();
        while !is_so(self, &withheld) {
            match self.queue.pop() {
                Some(Reverse(next)) if waits(&next.what) => withheld.push(next.what),
                Some(Reverse(next)) if next.at_ns <= due_ns => {
                    self.now_ns = self.now_ns.max(next.at_ns);
                    self.happen(next.what);
                }
                _ => return Err(format!("it never came about that {what}")),
            }
            if let [first, ..] = self.checks.violations() {
                return Err(format!("before {what}: {first}"));
            }
        }
        Ok(withheld)
    }

    /// Takes what is to happen out of the world.
    fn withhold(&mut self, is_meant: impl Fn(&What) -> bool) -> Vec<What> {
        let (meant, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|Reverse(next)| is_meant(&next.what));
        self.queue = rest.into();
        meant.into_iter().map(|Reverse(next)| next.what).collect()
    }

    /// Lets happen now what was withheld.
    fn let_happen(&mut self, withheld: Vec<What>) {
        withheld.into_iter().for_each(|what| self.schedule(self.now_ns, what));
    }

    fn is_coming(&self, is_meant: impl Fn(&What) -> bool) -> bool {
        self.queue.iter().any(|Reverse(next)| is_meant(&next.what))
    }

    fn cut_apart(&mut self, one: usize, other: usize) {
        self.network.cut[one][other] = true;
        self.network.cut[other][one] = true;
    }

    /// All connections end, and both ends hear of it.
    fn break_links(&mut self) {
        let links = std::mem::take(&mut self.network.links);
        for (id, link) in links {
            link.ends.into_iter().for_each(|node| self.end_told(node, id));
        }
    }

    fn join_up(&mut self, one: usize, other: usize) {
        self.heal(one, other);
        self.heal(other, one);
    }

    /// The process of a node is killed, and never started again by itself.
    fn kill(&mut self, node: usize) {
        self.end_node(node);
    }

    fn leads(&self, node: usize) -> bool {
        matches!(self.nodes[node].role, Role::Primary(_))
    }

    fn is_in_step(&self, node: usize) -> bool {
        match &self.nodes[node].role {
            Role::Backup(standing) => standing.core.is_in_step(),
            _ => false,
        }
    }

    fn is_following(&self, node: usize) -> bool {
        matches!(&self.nodes[node].role, Role::Backup(standing) if standing.core.state_name() == "following")
    }

    /// Whether a primary says so of itself.
    fn is_primary_state(&self, node: usize, name: &str) -> bool {
        matches!(&self.nodes[node].role, Role::Primary(live) if live.core.state_name() == name)
    }

    fn is_protected_by(&self, backups: usize) -> bool {
        self.is_settled_for(backups) && self.record().is_some_and(|record| record.backups.len() == backups)
    }

    fn is_settled_for(&self, backups: usize) -> bool {
        self.holder().is_some_and(|live| {
            live.core.is_protected()
                && live.core.backups().iter().filter(|backup| backup.registered).count() == backups
        })
    }

    /// Goes on for a while.
    fn go_on_for(&mut self, for_ns: u64) {
        self.run_until(self.now_ns + for_ns);
    }

    /// Lets the clients end, and compares what they saw with the machine that is protected at the end.
    fn conclude(&mut self) -> Result<(), String> {
        self.heal_all();
        self.until("all clients are answered, and the machine is protected", World::is_settled)?;
        self.final_checks();
        Ok(())
    }
}

/// b took over, released alone and died. Its next life joins the primary that it had taken over
/// from, which knows nothing of that, and loses it: what it holds is of an earlier term than what
/// clients know, so it must not go on.
///
/// # Errors
/// What went wrong.
pub fn an_earlier_life_took_over() -> Result<Coverage, String> {
    play(shape(2, ProtectionMode::Replay), |world| {
        world.until("b is counted on", |world| world.is_protected_by(1))?;
        world.cut_apart(0, 1);
        world.nodes[0].arbiter_cut_until_ns = u64::MAX;
        world.until("b leads", |world| world.leads(1))?;
        world.go_on_for(400 * MILLISECOND_NS);
        world.kill(1);
        world.join_up(0, 1);
        world.start_backup(1);
        world.until("the next life of b is in step with a", |world| world.is_in_step(1))?;
        world.kill(0);
        world.until("its claim is refused", |world| world.coverage.times("claim refused") > 0)?;
        world.go_on_for(1_000 * MILLISECOND_NS);
        match world.leads(1) {
            true => Err("an earlier state of the machine went on".to_owned()),
            false => Ok(()),
        }
    })
}

/// b's claim is refused just before b is registered: it stays in step, so that the machine
/// survives its primary.
///
/// # Errors
/// What went wrong.
pub fn a_claim_just_before_the_registration() -> Result<Coverage, String> {
    play(shape(2, ProtectionMode::Replay), |world| {
        let registers = |what: &What| matches!(what, What::ArbiterSets { step: Step::SetBackups { .. }, .. });
        world.until("b is about to be registered", |world| world.is_coming(registers))?;
        let withheld = world.withhold(registers);
        world.cut_apart(0, 1);
        let refused = |what: &What| {
            matches!(what, What::ArbiterReply { node: 1, reply: Err(ArbitrationError::Refused(_)), .. })
        };
        world.until("b's claim is refused", |world| world.is_coming(refused))?;
        world.let_happen(withheld);
        world.until("a counts on b", |world| world.record().is_some_and(|record| record.counts_on("b")))?;
        world.kill(0);
        world.join_up(0, 1);
        world.until("b leads", |world| world.leads(1))?;
        world.start_backup(0);
        world.conclude()
    })
}

/// A first backup is about to be registered: output waits for it from the question on, since the
/// record may name it any moment, and it may have to take over then.
///
/// # Errors
/// What went wrong.
pub fn output_waits_while_a_first_backup_is_registered() -> Result<Coverage, String> {
    // Auto begins with replay, and has the guest never rest for the backup: the end of a rest is a
    // timer's, and these are withheld.
    let shape = Shape { mode: ModeChoice::Auto, ..shape(2, ProtectionMode::Replay) };
    play(shape, |world| {
        world.until("a asks for b", |world| world.is_primary_state(0, "registering"))?;
        let outputs = |world: &World| match &world.nodes[0].role {
            Role::Primary(live) => live.vcpu.recorder().machine().outputs_made(),
            _ => 0,
        };
        // Nothing reaches b, and nothing but its output makes a end a batch.
        world.cut_apart(0, 1);
        let made = outputs(world) + 2;
        let ends_batch = |what: &What| matches!(what, What::Timer { node: 0, .. } | What::Wire { .. });
        let mut withheld =
            world.until_without("a has made output", ends_batch, |world, _| outputs(world) > made)?;
        // Not heard of any more.
        withheld.retain(|what| !matches!(what, What::Wire { .. }));
        world.let_happen(withheld);
        world.until("the record names b", |world| {
            world.record().is_some_and(|record| record.counts_on("b"))
        })?;
        world.kill(0);
        world.until("b leads", |world| world.leads(1))?;
        world.join_up(0, 1);
        world.start_backup(0);
        world.conclude()
    })
}

/// The question whether a backup is registered is never answered, and the backup is lost meanwhile:
/// the primary asks again, for what it wants by then.
///
/// # Errors
/// What went wrong.
pub fn an_unanswered_question_for_a_backup_that_is_lost() -> Result<Coverage, String> {
    play(shape(2, ProtectionMode::Replay), |world| {
        world.until("a asks for b", |world| world.is_primary_state(0, "registering"))?;
        let asked = |what: &What| {
            matches!(what, What::ArbiterAsked { node: 0, .. } | What::ArbiterSets { node: 0, .. })
        };
        world.until("the question is under way", |world| world.is_coming(asked))?;
        world.nodes[0].arbiter_cut_until_ns = world.now_ns + 600 * MILLISECOND_NS;
        world.kill(1);
        world.go_on_for(1_500 * MILLISECOND_NS);
        if world.is_primary_state(0, "registering") {
            return Err("a goes on registering a backup that is gone".to_owned());
        }
        world.start_backup(1);
        world.conclude()
    })
}

/// A connection breaks while an increment is on its way: the backup goes on from what it has, and
/// gets the increment again, not the whole machine.
///
/// # Errors
/// What went wrong.
pub fn an_increment_is_cut_off() -> Result<Coverage, String> {
    play(shape(2, ProtectionMode::Checkpoint), |world| {
        world.until("b is counted on", |world| world.is_protected_by(1))?;
        let joins = world.coverage.times("join: checkpoint");
        for _ in 0..3 {
            let is_part = |what: &What| match what {
                What::Wire { frame, .. } => {
                    Message::decode(frame).is_ok_and(|message| message.kind() == FrameKind::IncrementPart)
                }
                _ => false,
            };
            world.until("a part of an increment is on its way", |world| world.is_coming(is_part))?;
            drop(world.withhold(|what| matches!(what, What::Wire { .. })));
            world.break_links();
            let resumed = world.coverage.times("join: resume");
            world.until("b goes on from what it has", |world| {
                world.coverage.times("join: resume") > resumed && world.is_following(1)
            })?;
            world.until("b is counted on again", |world| world.is_protected_by(1))?;
        }
        match world.coverage.times("join: checkpoint") - joins {
            0 => world.conclude(),
            more => Err(format!("the whole machine was shipped {more} times more")),
        }
    })
}

/// A second backup joins while increments go to the first: it does not hold what those before built
/// on.
///
/// # Errors
/// What went wrong.
pub fn increments_for_a_newcomer() -> Result<Coverage, String> {
    play(shape(3, ProtectionMode::Checkpoint), |world| {
        drop(world.withhold(|what| matches!(what, What::Restart { node: 2, .. })));
        world.until("b is counted on", |world| world.is_protected_by(1))?;
        world.start_backup(2);
        // The machine's thread comes to nothing until the next increment is due, too.
        let asks = |what: &What, wanted: CheckpointExtent| match what {
            What::Hop { node: 0, hop: Hop::ToVcpu(ToVcpu::Request(request)), .. } => {
                matches!(request, MachineRequest::BeginCheckpoint { extent, .. } if *extent == wanted)
            }
            _ => false,
        };
        let full = |what: &What| asks(what, CheckpointExtent::Full);
        world.until("c's checkpoint is asked for", |world| world.is_coming(full))?;
        let withheld = world.until_without(
            "an increment is asked for before it begins",
            |what| matches!(what, What::Hop { node: 0, hop: Hop::ToVcpu(_), .. }),
            |_, withheld| withheld.iter().any(|what| asks(what, CheckpointExtent::Increment)),
        )?;
        if !withheld.iter().any(full) {
            return Err("the increment came first".to_owned());
        }
        world.let_happen(withheld);
        world.until("c is counted on, too", |world| world.is_protected_by(2))?;
        world.conclude()
    })
}
