//! The first words of a connection: whether two nodes fit together, sans-I/O.
//!
//! ```text
//!   backup                                   primary
//!     | -- Hello ----------------------------> | answer_hello
//!     |      check_welcome <-------- Welcome - |   fits: the join begins
//!     |                    <--------- Refuse - |   does not: the connection ends
//!     | -- Refuse ---------------------------> |   when the Welcome does not fit
//! ```
//!
//! Hello and Refuse keep their form in every version of the format, so that two programs of
//! any age can find out that they differ. Whatever is refused says what was found, what was
//! expected and what to do.

use log_format::{
    ChainHash, Hello, JoinPlan, MachineIdentity, Position, Refuse, RefuseReason, VersionRange, Welcome,
};

/// What a node knows of itself when it meets another.
#[derive(Debug, Clone)]
pub struct LocalFacts {
    /// The virtual machine.
    pub vm: String,
    /// This node, as the arbiter knows it.
    pub node: String,
    /// The primary's term; on a backup, the highest it has seen.
    pub term: u64,
    /// The machine that it runs or would run.
    pub identity: MachineIdentity,
    /// Format versions that it speaks.
    pub versions: VersionRange,
    /// Interval at which a primary sends heartbeats.
    pub heartbeat_interval_ms: u32,
}

/// Whether a node takes a backup at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It is the primary and has room.
    Open,
    /// It is not a primary now.
    NotPrimary,
    /// It was one and is fenced.
    Fenced,
    /// It has a backup already.
    Busy,
}

/// How the primary lets a backup join, chosen after [`check_hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// What comes next.
    pub plan: JoinPlan,
    /// The place after which the log comes.
    pub from: Position,
    /// The chain hash there.
    pub chain: ChainHash,
}

/// The primary's answer to a Hello: [`check_hello`], then [`welcome`] with what `join`
/// chooses.
///
/// # Errors
/// The Refuse to send, as [`check_hello`] says.
pub fn answer_hello(
    hello: &Hello,
    certified_node: Option<&str>,
    facts: &LocalFacts,
    availability: Availability,
    join: impl FnOnce(&Hello) -> Join,
) -> Result<Welcome, Refuse> {
    let version = check_hello(hello, certified_node, facts, availability)?;
    Ok(welcome(facts, version, join(hello)))
}

/// Whether a backup may join; the format version to speak. `certified_node` is the name in
/// its certificate, if there is one.
///
/// # Errors
/// The Refuse to send. With [`RefuseReason::Fenced`] it is this side whose term may be over,
/// since the backup has seen a later one: ask the arbiter before anything else.
pub fn check_hello(
    hello: &Hello,
    certified_node: Option<&str>,
    facts: &LocalFacts,
    availability: Availability,
) -> Result<u8, Refuse> {
    let refuse = |reason, text| Refuse { term: facts.term, reason, text };
    let version =
        common_version(hello.versions, facts.versions).map_err(|text| refuse(RefuseReason::Version, text))?;
    if hello.vm != facts.vm {
        let text = format!(
            "the backup stands by for VM {:?}, this primary runs {:?}; connect it to the other's primary, or give both the same --vm",
            hello.vm, facts.vm
        );
        return Err(refuse(RefuseReason::WrongVm, text));
    }
    check_name(&hello.node, certified_node, &facts.node)
        .map_err(|text| refuse(RefuseReason::WrongIdentity, text))?;
    match availability {
        Availability::Open => {}
        Availability::NotPrimary => {
            let text = format!("{} is not a primary now; try its peer", facts.node);
            return Err(refuse(RefuseReason::NotPrimary, text));
        }
        Availability::Fenced => {
            let text = format!("{} lost its primacy; try its peer", facts.node);
            return Err(refuse(RefuseReason::Fenced, text));
        }
        Availability::Busy => {
            let text = format!("{} has a backup already; remove that first", facts.node);
            return Err(refuse(RefuseReason::Busy, text));
        }
    }
    if hello.term > facts.term {
        let text = format!(
            "the backup has seen term {}, this primary is in term {}: its primacy may be over",
            hello.term, facts.term
        );
        return Err(refuse(RefuseReason::Fenced, text));
    }
    let boot_images = hello.has_boot_images;
    check_identity("backup", &hello.identity, "primary", &facts.identity, boot_images)
        .map_err(|text| refuse(RefuseReason::WrongIdentity, text))?;
    Ok(version)
}

/// The Welcome for a backup that fits.
pub fn welcome(facts: &LocalFacts, version: u8, join: Join) -> Welcome {
    Welcome {
        from: join.from,
        chain: join.chain,
        version,
        node: facts.node.clone(),
        term: facts.term,
        plan: join.plan,
        identity: facts.identity.clone(),
        heartbeat_interval_ms: facts.heartbeat_interval_ms,
    }
}

/// Whether the backup can follow the primary that sent this Welcome. `has_boot_images` is
/// what its Hello said.
///
/// # Errors
/// The Refuse to send before the backup gives up.
pub fn check_welcome(
    welcome: &Welcome,
    certified_node: Option<&str>,
    facts: &LocalFacts,
    has_boot_images: bool,
) -> Result<(), Refuse> {
    let refuse = |reason, text| Refuse { term: facts.term, reason, text };
    if !facts.versions.contains(welcome.version) {
        let text = format!(
            "the primary chose format version {}, this backup speaks {} to {}; run the same release on both hosts",
            welcome.version, facts.versions.min, facts.versions.max
        );
        return Err(refuse(RefuseReason::Version, text));
    }
    check_name(&welcome.node, certified_node, &facts.node)
        .map_err(|text| refuse(RefuseReason::WrongIdentity, text))?;
    if welcome.term < facts.term {
        let text = format!(
            "the primary {} is in term {}, this backup has seen term {}: its primacy is over; stop it",
            welcome.node, welcome.term, facts.term
        );
        return Err(refuse(RefuseReason::StaleTerm, text));
    }
    check_identity("primary", &welcome.identity, "backup", &facts.identity, has_boot_images)
        .map_err(|text| refuse(RefuseReason::WrongIdentity, text))?;
    if welcome.plan == JoinPlan::LogFromBoot && !has_boot_images {
        let text = "the primary wants to send the log from the boot on, this backup has no boot images; start it with the primary's kernel and initrd".to_owned();
        return Err(refuse(RefuseReason::WrongIdentity, text));
    }
    if welcome.heartbeat_interval_ms == 0 {
        let text =
            "the primary announces heartbeats every 0 ms, expected at least 1; set its heartbeat interval"
                .to_owned();
        return Err(refuse(RefuseReason::WrongIdentity, text));
    }
    Ok(())
}

/// The highest version that both sides speak.
fn common_version(theirs: VersionRange, ours: VersionRange) -> Result<u8, String> {
    ours.negotiate(theirs).ok_or_else(|| {
        format!(
            "the backup speaks format versions {} to {}, this primary {} to {}; upgrade the older of the two",
            theirs.min, theirs.max, ours.min, ours.max
        )
    })
}

/// A node is who its certificate says, and not this node.
fn check_name(claimed: &str, certified: Option<&str>, own: &str) -> Result<(), String> {
    if let Some(certified) = certified
        && certified != claimed
    {
        return Err(format!(
            "the peer calls itself {claimed}, its certificate says {certified}; give it the keys of its own name"
        ));
    }
    if claimed == own {
        return Err(format!("both sides are called {own}; give each node a name of its own"));
    }
    Ok(())
}

/// Two machines with equal identities go through the same states.
fn check_identity(
    their_role: &str,
    theirs: &MachineIdentity,
    our_role: &str,
    ours: &MachineIdentity,
    compare_boot_images: bool,
) -> Result<(), String> {
    let differ = |what: &str, found: String, expected: String, advice: &str| {
        Err(format!("the {their_role}'s {what} is {found}, the {our_role}'s is {expected}; {advice}"))
    };
    if theirs.semantics != ours.semantics {
        let (found, expected) = (theirs.semantics.to_string(), ours.semantics.to_string());
        return differ("machine version", found, expected, "run the same release on both hosts");
    }
    if theirs.config != ours.config {
        let (found, expected) = (short(&theirs.config), short(&ours.config));
        let advice = "give both the same harts, memory, devices and command line";
        return differ("configuration", found, expected, advice);
    }
    if compare_boot_images && theirs.boot_images != ours.boot_images {
        let (found, expected) = (short(&theirs.boot_images), short(&ours.boot_images));
        let advice = "copy the same kernel, initrd and firmware to both hosts";
        return differ("kernel, initrd or firmware", found, expected, advice);
    }
    if theirs.disks.len() != ours.disks.len() {
        let (found, expected) = (theirs.disks.len().to_string(), ours.disks.len().to_string());
        return differ("number of disks", found, expected, "give both the same --disk options");
    }
    for (index, (found, expected)) in theirs.disks.iter().zip(&ours.disks).enumerate() {
        if found.0 != expected.0 {
            let (found, expected) = (bytes(found.0), bytes(expected.0));
            let advice = "copy the same base image to both hosts";
            return differ(&format!("disk {index} size"), found, expected, advice);
        }
        if found.1 != expected.1 {
            let (found, expected) = (short(&found.1), short(&expected.1));
            let advice = "copy the same base image to both hosts";
            return differ(&format!("disk {index} contents"), found, expected, advice);
        }
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    format!("{count} bytes")
}

/// Enough of a hash to tell two apart.
fn short(hash: &[u8; 32]) -> String {
    hash[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use log_format::Have;
    use log_format::Life;
    use proptest::prelude::*;

    fn identity() -> MachineIdentity {
        MachineIdentity {
            semantics: 1,
            config: [1; 32],
            boot_images: [2; 32],
            disks: vec![(1 << 20, [3; 32]), (4096, [4; 32])],
        }
    }

    fn facts(node: &str, term: u64) -> LocalFacts {
        LocalFacts {
            vm: "web".into(),
            node: node.into(),
            term,
            identity: identity(),
            versions: VersionRange { min: 1, max: 3 },
            heartbeat_interval_ms: 20,
        }
    }

    fn hello() -> Hello {
        Hello {
            life: Life::UNKNOWN,
            term: 4,
            versions: VersionRange { min: 2, max: 5 },
            vm: "web".into(),
            node: "beta".into(),
            identity: identity(),
            have: None,
            has_boot_images: true,
        }
    }

    fn from_boot(_: &Hello) -> Join {
        Join { plan: JoinPlan::LogFromBoot, from: Position::default(), chain: ChainHash::NONE }
    }

    fn answer(hello: &Hello) -> Result<Welcome, Refuse> {
        let facts = facts("alpha", 4);
        answer_hello(hello, Some("beta"), &facts, Availability::Open, from_boot)
    }

    fn refused(change: impl FnOnce(&mut Hello)) -> Refuse {
        let mut hello = hello();
        change(&mut hello);
        answer(&hello).unwrap_err()
    }

    #[test]
    fn nodes_that_fit_agree_on_the_highest_common_version() {
        let welcome = answer(&hello()).unwrap();
        assert_eq!((welcome.version, welcome.term), (3, 4));
        assert_eq!(welcome.node, "alpha");
        assert_eq!(welcome.plan, JoinPlan::LogFromBoot);
        check_welcome(&welcome, Some("alpha"), &facts("beta", 4), true).unwrap();
    }

    #[test]
    fn the_plan_is_chosen_by_what_the_backup_has() {
        let have = Have { position: Position { sequence: 9, ..Position::default() }, chain: ChainHash::NONE };
        let hello = Hello { have: Some(have), ..hello() };
        let resume = |hello: &Hello| Join {
            plan: JoinPlan::Resume,
            from: hello.have.unwrap().position,
            chain: hello.have.unwrap().chain,
        };
        let facts = facts("alpha", 4);
        let welcome = answer_hello(&hello, None, &facts, Availability::Open, resume).unwrap();
        assert_eq!((welcome.plan, welcome.from), (JoinPlan::Resume, have.position));
    }

    #[test]
    fn each_difference_has_its_reason_and_says_found_and_expected() {
        type Change = fn(&mut Hello);
        let cases: [(RefuseReason, &str, Change); 9] = [
            (RefuseReason::Version, "4 to 5, this primary 1 to 3", |h| {
                h.versions = VersionRange { min: 4, max: 5 }
            }),
            (RefuseReason::WrongVm, "\"db\", this primary runs \"web\"", |h| h.vm = "db".into()),
            (RefuseReason::WrongIdentity, "certificate says beta", |h| h.node = "gamma".into()),
            (RefuseReason::WrongIdentity, "machine version is 2, the primary's is 1", |h| {
                h.identity.semantics = 2
            }),
            (RefuseReason::WrongIdentity, "configuration is 0909", |h| h.identity.config = [9; 32]),
            (RefuseReason::WrongIdentity, "firmware is 0909", |h| h.identity.boot_images = [9; 32]),
            (RefuseReason::WrongIdentity, "number of disks is 1, the primary's is 2", |h| {
                h.identity.disks.truncate(1)
            }),
            (RefuseReason::WrongIdentity, "disk 1 size is 8192 bytes", |h| h.identity.disks[1].0 = 8192),
            (RefuseReason::WrongIdentity, "disk 0 contents is 0909", |h| h.identity.disks[0].1 = [9; 32]),
        ];
        for (reason, part, change) in cases {
            let refuse = refused(change);
            assert_eq!(refuse.reason, reason, "{}", refuse.text);
            assert!(refuse.text.contains(part), "{}", refuse.text);
            assert_eq!(refuse.term, 4);
        }
    }

    #[test]
    fn a_primary_that_meets_a_later_term_doubts_itself() {
        let refuse = refused(|hello| hello.term = 5);
        assert_eq!(refuse.reason, RefuseReason::Fenced);
        assert!(refuse.text.contains("its primacy may be over"));
    }

    #[test]
    fn a_node_that_takes_no_backup_says_why() {
        for (availability, reason) in [
            (Availability::NotPrimary, RefuseReason::NotPrimary),
            (Availability::Fenced, RefuseReason::Fenced),
            (Availability::Busy, RefuseReason::Busy),
        ] {
            let facts = facts("alpha", 4);
            let refuse = answer_hello(&hello(), None, &facts, availability, from_boot);
            assert_eq!(refuse.unwrap_err().reason, reason);
        }
    }

    #[test]
    fn a_backup_without_boot_images_is_not_asked_for_their_hash() {
        let mut hello = hello();
        hello.has_boot_images = false;
        hello.identity.boot_images = [0; 32];
        let welcome = answer(&hello).unwrap();
        let facts = facts("beta", 4);
        let refuse = check_welcome(&welcome, None, &facts, false).unwrap_err();
        assert!(refuse.text.contains("no boot images"), "{}", refuse.text);
        let by_checkpoint = Welcome { plan: JoinPlan::Checkpoint, ..welcome };
        check_welcome(&by_checkpoint, None, &facts, false).unwrap();
    }

    #[test]
    fn a_backup_refuses_a_stale_primary_and_strange_welcomes() {
        let welcome = answer(&hello()).unwrap();
        let reason = |welcome: &Welcome, term| {
            check_welcome(welcome, Some("alpha"), &facts("beta", term), true).unwrap_err().reason
        };
        assert_eq!(reason(&welcome, 5), RefuseReason::StaleTerm);
        let strange = [
            (RefuseReason::Version, Welcome { version: 4, ..welcome.clone() }),
            (RefuseReason::WrongIdentity, Welcome { node: "eve".into(), ..welcome.clone() }),
            (RefuseReason::WrongIdentity, Welcome { heartbeat_interval_ms: 0, ..welcome.clone() }),
        ];
        for (expected, welcome) in strange {
            assert_eq!(reason(&welcome, 4), expected);
        }
    }

    #[test]
    fn two_nodes_of_one_name_are_refused() {
        let facts = facts("beta", 4);
        let refuse = check_hello(&hello(), None, &facts, Availability::Open).unwrap_err();
        assert!(refuse.text.contains("both sides are called beta"));
    }

    proptest! {
        #[test]
        fn the_version_is_the_highest_in_both_ranges(
            (a, b, c, d) in (1..9u8, 1..9u8, 1..9u8, 1..9u8),
        ) {
            let theirs = VersionRange { min: a.min(b), max: a.max(b) };
            let ours = VersionRange { min: c.min(d), max: c.max(d) };
            let common = (1..9u8).filter(|v| theirs.contains(*v) && ours.contains(*v)).max();
            prop_assert_eq!(common_version(theirs, ours).ok(), common);
        }
    }
}
