//! Hashes of what was written to the disks, for a primary that compares them with its own.

use log_format::{DiskCheck, DiskHashes, Message};

use super::Backup;
use crate::worker::ToReplayer;

impl Backup {
    /// The primary wants the disks hashed after a batch: at the end of the last one that it sent, or,
    /// where this side stands, at the end of an increment, which may not be here yet.
    pub(super) fn check_disks(&mut self, check: DiskCheck) {
        let held = self.held.map(|held| held.position.sequence);
        if check.term != self.term || !self.following && !self.mode.stands() {
            self.cannot_check(check);
        } else if self.mode.stands() && check.sequence > self.stood {
            self.disk_check = Some(check);
        } else if self.mode.stands() && check.sequence == self.stood {
            self.commands.push_back(ToReplayer::HashDisks { check: check.check });
        } else if !self.mode.stands() && held == Some(check.sequence) {
            self.commands.extend([
                ToReplayer::Stand { sequence: check.sequence },
                ToReplayer::HashDisks { check: check.check },
                ToReplayer::Follow,
            ]);
        } else {
            self.cannot_check(check);
        }
    }

    /// An increment led to where the disks are to be hashed, or beyond.
    pub(super) fn check_disks_at_increment(&mut self) {
        let stood = self.stood;
        let due = self.disk_check.take_if(|check| check.sequence <= stood);
        due.into_iter().for_each(|check| self.check_disks(check));
    }

    /// The increment will not come: this side does not stand any more, or stands elsewhere.
    pub(super) fn give_up_disk_check(&mut self) {
        self.disk_check.take().into_iter().for_each(|check| self.cannot_check(check));
    }

    fn cannot_check(&mut self, check: DiskCheck) {
        let error = "its machine is not where the disks are to be compared; try again".to_owned();
        let hashes = DiskHashes { check: check.check, is_last: true, error, ..DiskHashes::default() };
        self.outbox.push_back(Message::DiskHashes(hashes));
    }
}
