//! Against a real cluster of three members. `tests/run --quick` skips what has `real_etcd` in
//! its name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use log_format::Life;

use super::*;
use crate::arbiter::contract::{self, record};
use crate::arbiter::{Guard, GuardNews};
use crate::arbitration::{ArbitrationError, Authority, Step, arbitrate};
use crate::clock::monotonic_ns;

#[path = "../../../tests/common/etcd.rs"]
mod cluster;
use cluster::{EtcdCluster, is_missing};

/// Far longer than any step here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(cluster: &EtcdCluster, options: &str) -> EtcdConfig {
    EtcdConfig::parse(&format!("{},{options}", cluster.endpoints().join(","))).unwrap()
}

/// Waits until the cluster answers.
fn open(cluster: &EtcdCluster, vm: &str, options: &str) -> EtcdArbiter {
    let config = config(cluster, options);
    cluster.wait_for("first answer", || EtcdArbiter::open(&config, vm).ok())
}

fn guarded(arbiter: &EtcdArbiter, term: u64, node: &str) -> (Box<dyn Guard>, Receiver<GuardNews>) {
    let (news, told) = channel();
    let tell = Box::new(move |item| drop(news.send(item)));
    (arbiter.guard(term, node, tell).unwrap(), told)
}

/// The next piece of news that `pick` takes.
fn await_news<T>(told: &Receiver<GuardNews>, pick: impl Fn(GuardNews) -> Option<T>) -> T {
    loop {
        if let Some(picked) = pick(told.recv_timeout(PATIENCE).unwrap()) {
            return picked;
        }
    }
}

fn lease_news(news: GuardNews) -> Option<u64> {
    match news {
        GuardNews::Lease { valid_until_ns } => Some(valid_until_ns),
        _ => None,
    }
}

fn claim(node: &str, authority: Authority) -> Step {
    Step::ClaimStart { node: node.into(), life: Life::UNKNOWN, authority }
}

#[test]
fn real_etcd_meets_the_contract() {
    if is_missing() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    contract::keeps_what_was_won_and_refuses_the_rest(&open(&cluster, "web", ""));
    contract::one_wins_each_step(4, || open(&cluster, "race", ""));

    // What was won is there after all members died at once.
    (0..3).for_each(|index| cluster.kill(index));
    (0..3).for_each(|index| cluster.restart(index));
    let arbiter = open(&cluster, "web", "");
    assert_eq!(arbiter.read().unwrap(), Some(record(1, "a", Some("b"))));
    // Another VM's record is another key, and another prefix's too.
    assert_eq!(open(&cluster, "db", "").read().unwrap(), None);
    assert_eq!(open(&cluster, "web", "prefix=/other").read().unwrap(), None);
}

/// Contenders raise the term while one member after the other dies, the leader among them:
/// each term is won once, though answers get lost.
#[test]
fn real_etcd_loses_members_in_a_storm() {
    if is_missing() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    open(&cluster, "web", "");
    let over = AtomicBool::new(false);
    let config = config(&cluster, "timeout=1s");
    let mut wins: Vec<(u64, String)> = std::thread::scope(|scope| {
        let contenders = ["a", "b", "c"].map(|node| {
            let (over, config) = (&over, &config);
            scope.spawn(move || contend(config, node, over))
        });
        for round in 0..4 {
            std::thread::sleep(Duration::from_millis(400));
            cluster.kill(round % 3);
            std::thread::sleep(Duration::from_millis(900));
            cluster.restart(round % 3);
        }
        over.store(true, Ordering::Relaxed);
        contenders.into_iter().flat_map(|contender| contender.join().unwrap()).collect()
    });
    wins.sort();
    let last = open(&cluster, "web", "").read().unwrap().unwrap();
    let terms: Vec<u64> = wins.iter().map(|(term, _)| *term).collect();
    let mut once = terms.clone();
    once.dedup();
    assert_eq!(terms, once, "a term was won twice: {wins:?}");
    assert!(wins.len() > 10 && terms.last() <= Some(&last.term), "{} wins, {last}", wins.len());
}

/// Raises the term again and again. Returns what it won, as far as it was told.
fn contend(config: &EtcdConfig, node: &str, over: &AtomicBool) -> Vec<(u64, String)> {
    let Ok(arbiter) = EtcdArbiter::open(config, "web") else { return Vec::new() };
    let mut wins = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let Ok(current) = arbiter.read() else { continue };
        let term = current.as_ref().map_or(0, |record| record.term) + 1;
        if let Ok(CasOutcome::Won) = arbiter.compare_and_set(current.as_ref(), &record(term, node, None)) {
            wins.push((term, node.to_owned()));
        }
    }
    wins
}

#[test]
fn real_etcd_without_a_majority_says_so_and_returns() {
    if is_missing() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let arbiter = open(&cluster, "web", "timeout=1s");
    arbitrate(&arbiter, &claim("a", Authority::Rules)).unwrap();
    cluster.kill(0);
    // Two of three are enough.
    cluster.wait_for("answer of two", || arbiter.read().ok());
    cluster.kill(1);
    let error = arbiter.read().unwrap_err().to_string();
    assert!(error.contains("check that most of its members run"), "{error}");
    let step = Step::SetBackups {
        node: "a".into(),
        term: 1,
        backups: ["b".into()].into(),
        lives: Default::default(),
        required: 1,
    };
    assert!(matches!(arbitrate(&arbiter, &step), Err(ArbitrationError::Unreachable(_))));
    cluster.restart(0);
    cluster.wait_for("answer of two", || arbiter.read().ok());
    assert_eq!(arbitrate(&arbiter, &step).unwrap(), record(1, "a", Some("b")));
}

#[test]
fn real_etcd_tells_of_the_lease_and_of_newer_records() {
    if is_missing() {
        return;
    }
    let cluster = EtcdCluster::start();
    let ours = open(&cluster, "web", "ttl=2s");
    let theirs = open(&cluster, "web", "ttl=2s");
    arbitrate(&ours, &claim("a", Authority::Rules)).unwrap();
    let (guard, told) = guarded(&ours, 1, "a");
    let record_news = |news| match news {
        GuardNews::Record(record) => Some(record),
        _ => None,
    };
    assert_eq!(await_news(&told, record_news), record(1, "a", None));
    let first_ns = await_news(&told, lease_news);
    assert!(first_ns <= monotonic_ns() + 2_000_000_000 / 100 * (100 - CLOCK_RATE_MARGIN_PERCENT));
    let renewed_ns = await_news(&told, |news| lease_news(news).filter(|&until_ns| until_ns > first_ns));
    assert!(guard.valid_until_ns() >= renewed_ns - 1_000_000);

    // A node that is not named waits for the lease's end, even on the operator's word.
    let forced = claim("c", Authority::Operator);
    let error = arbitrate(&theirs, &forced).unwrap_err().to_string();
    assert!(error.contains("the lease of a in term 1 is alive"), "{error}");
    // A named one need not, and the primary hears of it at once.
    let register = Step::SetBackups {
        node: "a".into(),
        term: 1,
        backups: ["b".into()].into(),
        lives: Default::default(),
        required: 1,
    };
    arbitrate(&ours, &register).unwrap();
    assert_eq!(await_news(&told, record_news), record(1, "a", Some("b")));
    arbitrate(&theirs, &Step::TakeOver { node: "b".into(), life: Life::UNKNOWN, term: 1, held: 0 }).unwrap();
    assert_eq!(await_news(&told, record_news), record(2, "b", None));
    // The new primary's lease takes the old one's place.
    let (next, next_told) = guarded(&theirs, 2, "b");
    await_news(&next_told, lease_news);
    let last_ns = guard.valid_until_ns();
    let waited = told.recv_timeout(Duration::from_millis(2500));
    assert!(guard.valid_until_ns() <= last_ns + 1_000_000, "renewed after it was taken over: {waited:?}");

    // Given back, it stands in nobody's way.
    assert!(matches!(arbitrate(&ours, &forced), Err(ArbitrationError::Unreachable(_))));
    next.release();
    assert_eq!(arbitrate(&ours, &forced).unwrap(), record(3, "c", None));
}

#[test]
fn real_etcd_lets_a_lease_end_when_it_is_lost_and_grants_it_again() {
    if is_missing() {
        return;
    }
    let mut cluster = EtcdCluster::start();
    let arbiter = open(&cluster, "web", "ttl=2s,timeout=1s");
    arbitrate(&arbiter, &claim("a", Authority::Rules)).unwrap();
    let (guard, told) = guarded(&arbiter, 1, "a");
    await_news(&told, lease_news);
    // One member, the leader or not: the lease goes on.
    cluster.kill(0);
    let seen_ns = guard.valid_until_ns();
    await_news(&told, |news| lease_news(news).filter(|&until_ns| until_ns > seen_ns + 2_500_000_000));
    // The majority: it ends, and says why.
    cluster.kill(1);
    let text = await_news(&told, |news| match news {
        GuardNews::NotRenewed { text } => Some(text),
        _ => None,
    });
    assert!(text.contains("etcd at"), "{text}");
    cluster.wait_for("end of the lease", || (guard.valid_until_ns() < monotonic_ns()).then_some(()));
    cluster.restart(1);
    let again_ns = await_news(&told, |news| lease_news(news).filter(|&until_ns| until_ns > monotonic_ns()));
    assert!(again_ns > seen_ns);
}

#[test]
fn real_etcd_with_users_and_tls() {
    if is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    write_certificates(folder.path());
    let options = [
        format!("--cert-file={}", file("server.crt")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca.crt")),
        "--client-cert-auth".to_owned(),
    ];
    let cluster = EtcdCluster::start_with(&options);
    let tls = format!("ca={},cert={},key={}", file("ca.crt"), file("client.crt"), file("client.key"));
    let arbiter = open(&cluster, "web", &tls);
    arbitrate(&arbiter, &claim("a", Authority::Rules)).unwrap();
    // Without a certificate, or without TLS, nobody answers.
    for options in [format!("ca={},timeout=700ms", file("ca.crt")), "timeout=700ms".to_owned()] {
        let error = EtcdArbiter::open(&config(&cluster, &options), "web").err().unwrap().to_string();
        assert!(error.contains("etcd at"), "{error}");
    }

    let config_with = |password: &str| {
        std::fs::write(folder.path().join("password"), format!("{password}\n")).unwrap();
        config(&cluster, &format!("{tls},user=root,password-file={}", file("password")))
    };
    enable_users(&cluster, folder.path());
    let error = EtcdArbiter::open(&config_with("wrong"), "web").err().unwrap().to_string();
    assert!(error.contains("check user, password-file"), "{error}");
    let arbiter = EtcdArbiter::open(&config_with("sesame"), "web").unwrap();
    assert_eq!(arbiter.read().unwrap(), Some(record(1, "a", None)));
    let (_guard, told) = guarded(&arbiter, 1, "a");
    await_news(&told, lease_news);
}

/// An authority, and certificates of it for the members and for us.
fn write_certificates(folder: &std::path::Path) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(folder.join("ca.crt"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    for name in ["server", "client"] {
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.crt")), signed.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// From now on etcd answers to the user `root` with the password `sesame` only.
fn enable_users(cluster: &EtcdCluster, folder: &std::path::Path) {
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(read("ca.crt")))
        .identity(etcd_client::Identity::from_pem(read("client.crt"), read("client.key")));
    let options = etcd_client::ConnectOptions::new().with_tls(tls);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = etcd_client::Client::connect(cluster.endpoints(), Some(options)).await.unwrap();
        client.user_add("root", "sesame", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.auth_enable().await.unwrap();
    });
}

#[test]
fn nobody_there_is_an_error_with_a_way_out() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = EtcdConfig::parse(&format!("{nobody},timeout=300ms")).unwrap();
    let error = EtcdArbiter::open(&config, "web").err().unwrap().to_string();
    assert!(error.contains(&nobody.to_string()) && error.contains("check that most"), "{error}");
    let config = EtcdConfig::parse(&format!("{nobody},ca=/nowhere/ca.pem")).unwrap();
    let error = EtcdArbiter::open(&config, "web").err().unwrap().to_string();
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
}
