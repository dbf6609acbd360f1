//! The clients against a ledger in this process, honest or not.

use std::collections::HashMap;

use netbuf::host::HostListener;

use super::super::history::violations;
use super::*;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

fn plan() -> LoadPlan {
    LoadPlan {
        workload: Workload::Ledger,
        guest: GUEST,
        hosts: 2,
        connections: 4,
        interval: Duration::from_millis(2),
        put_percent: 50,
        keys: 3,
        operations_per_key: 20,
        seed: 7,
    }
}

/// What the ledger in this process does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Forgets the 40th entry after acknowledging it, as a machine that failed over without
    /// output commit would.
    ForgetsOne,
    /// Breaks each connection at its 20th request.
    Breaks,
}

#[derive(Default)]
struct Ledger {
    entries: Vec<(String, String)>,
    forgotten: bool,
}

impl Ledger {
    fn answer(&mut self, line: &str, fault: Fault) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["PUT", key, value] => {
                self.entries.push(((*key).into(), (*value).into()));
                let length = self.entries.len();
                if fault == Fault::ForgetsOne && length == 40 && !self.forgotten {
                    self.forgotten = true;
                    self.entries.pop();
                }
                format!("OK {length} 00\n")
            }
            ["GET", key] => {
                let latest: HashMap<&str, &str> =
                    self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                match latest.get(key) {
                    Some(value) => format!("VALUE {} 00 {value}\n", self.entries.len()),
                    None => format!("NONE {} 00\n", self.entries.len()),
                }
            }
            _ => format!("ERROR {} 00 what\n", self.entries.len()),
        }
    }
}

async fn serve(mut listener: HostListener, fault: Fault) {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    loop {
        let Ok(mut stream) = listener.accept().await else { return };
        let ledger = Arc::clone(&ledger);
        tokio::spawn(async move {
            let mut received = Vec::new();
            for served in 0.. {
                while !received.contains(&b'\n') {
                    match stream.read_buf(&mut received).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
                if fault == Fault::Breaks && served == 20 {
                    stream.abort();
                    return;
                }
                let end = received.iter().position(|&byte| byte == b'\n').unwrap_or(0);
                let line = String::from_utf8_lossy(&received[..end]).into_owned();
                received.drain(..=end);
                let answer = lock(&ledger).answer(&line, fault);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn run(fault: Fault) -> Finished {
    let switch = Switch::new();
    let server = Host::start(switch.attach(), HostConfig::new(MacAddress([2, 0, 0, 0, 0, 1]), GUEST));
    let serving = tokio::spawn(serve(server.listen(Workload::Ledger.port(), 8).unwrap(), fault));
    let load = Load::start(&switch, plan(), Clock::start()).await.unwrap();
    while load.answered() < 300 && load.broken().len() < load.connections() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let finished = load.finish().await;
    serving.abort();
    finished
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_ledger_gives_a_linearizable_history() {
    let finished = run(Fault::None).await;
    assert_eq!(finished.broken, Vec::<String>::new());
    let read_back = finished.read_back.unwrap();
    let mut all = finished.history;
    assert!(all.len() >= 300 && all.iter().all(|operation| operation.answer.is_some()));
    let keys: BTreeSet<&String> = all.iter().map(|operation| &operation.key).collect();
    assert!(keys.len() > plan().keys, "keys are left for fresh ones");
    assert_eq!(read_back.len(), keys.len());
    all.extend(read_back);
    assert_eq!(violations(&all), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_forgets_is_found_out() {
    let finished = run(Fault::ForgetsOne).await;
    assert_ne!(violations(&finished.history), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_told() {
    let finished = run(Fault::Breaks).await;
    assert_eq!(finished.broken.len(), 4, "{:?}", finished.broken);
    assert!(finished.read_back.is_err());
}
