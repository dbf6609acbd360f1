//! Increments: from the state at one batch to the state at a later one, whole or not at all.

use log_format::{WholeIncrement, page_codec};
use machine::Machine;

use super::{ReplayReport, ReplayWorker, Standing, State, ToReplayer};
use crate::replayer::{Counted, Divergence, DivergenceKind, Replayer};

impl<M: Machine, F: FnMut() -> M> ReplayWorker<M, F> {
    /// Takes the machine that stands to where an increment leads.
    pub(super) fn apply_increment(&mut self, whole: WholeIncrement) {
        let State::Standing(Standing { replayer, log, .. }) = &mut self.state else { return };
        let sequence = whole.start.position.sequence;
        match apply(replayer, &whole) {
            Ok(()) => {
                while log.pop_front_if(|batch| batch.sequence <= sequence).is_some() {}
                let progress = replayer.progress_now();
                self.tell(ReplayReport::Progress { progress, outputs: Vec::new() });
                self.tell(ReplayReport::Applied { sequence });
            }
            Err(divergence) => self.diverge(divergence),
        }
    }

    /// An increment has no place where the machine follows: nobody told it to stand.
    pub(super) fn refuse_early_increment(&mut self) {
        if let (State::Following(replayer), None, Some(ToReplayer::Increment(whole))) =
            (&self.state, self.stand_at, self.queue.front())
        {
            let text = "the machine does not stand at a checkpoint; join anew".to_owned();
            let divergence = wrong(replayer, whole, text);
            self.diverge(divergence);
        }
    }
}

/// Puts an increment into place and verifies what came of it. Everything that can be wrong with
/// it is seen before anything is changed; only its digest is compared at the end.
pub(super) fn apply<M: Machine>(
    replayer: &mut Replayer<M>,
    whole: &WholeIncrement,
) -> Result<(), Divergence> {
    let WholeIncrement { start, parts, end } = whole;
    let (sequence, stands_at) = (start.position.sequence, replayer.pushed_sequence());
    // It holds what was written since its base, and so since any later state.
    if start.base > stands_at || sequence < stands_at {
        let (base, expected) = (start.base, stands_at);
        let text = format!("it leads from batch {base}, this machine stands at batch {expected}; join anew");
        return Err(wrong(replayer, whole, text));
    }
    if end.parts != parts.len() as u64 {
        let text = format!("found {} parts, expected {}", parts.len(), end.parts);
        return Err(wrong(replayer, whole, text));
    }
    let machine = replayer.machine();
    let decode = |part| {
        let part = page_codec::decode_part(part, |index| machine.page(index));
        let part = part.map_err(|error| error.to_string())?;
        machine.check_part(&part).map_err(|error| error.to_string())?;
        Ok(part)
    };
    let parts = parts.iter().map(decode).collect::<Result<Vec<_>, String>>();
    let parts = parts.map_err(|text| wrong(replayer, whole, text))?;

    let machine = replayer.machine_mut();
    let put = machine
        .restore_update(&start.head)
        .and_then(|()| parts.iter().try_for_each(|part| machine.restore_part(part)));
    let found = machine.digest();
    put.map_err(|error| wrong(replayer, whole, error.to_string()))?;
    if found != end.digest {
        let verified_at = replayer.verified_at();
        let kind = DivergenceKind::Digest { expected: end.digest, found };
        return Err(Divergence { verified_at, found_at: start.head.moment, kind });
    }
    replayer.machine_mut().restore_end();
    replayer.rebase(sequence, Counted { events: start.events_before, outputs: start.head.outputs_before });
    Ok(())
}

fn wrong<M: Machine>(replayer: &Replayer<M>, whole: &WholeIncrement, text: String) -> Divergence {
    let sequence = whole.start.position.sequence;
    Divergence {
        verified_at: replayer.verified_at(),
        found_at: replayer.moment(),
        kind: DivergenceKind::Increment { sequence, text },
    }
}
