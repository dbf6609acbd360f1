//! A Debian guest with Redis goes on from a checkpoint file after an hour: its data is there, its
//! clock is right, and it never went back.

// Helpers of tests unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const HOUR_US: i128 = 3_600_000_000;
/// How far the guest's clock may be off.
const TOLERANCE_US: i128 = 1_000_000;
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);

fn command(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secondwind"));
    command.args(words).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("XDG_RUNTIME_DIR", folder).env("XDG_CONFIG_HOME", folder.join("config"));
    command
}

/// A machine that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks Redis; `None` while it does not answer.
fn ask(port: u16, words: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{}\r\n", words.join(" ")).as_bytes()).ok()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut answer = String::new();
    match line.as_bytes().first()? {
        b'+' => return Some(line[1..].trim().to_owned()),
        b'$' => {
            let mut bytes = vec![0; line[1..].trim().parse().ok()?];
            stream.read_exact(&mut bytes).ok()?;
            answer.push_str(&String::from_utf8_lossy(&bytes));
        }
        b'*' => {
            for _ in 0..2 * line[1..].trim().parse::<usize>().ok()? {
                line.clear();
                stream.read_line(&mut line).ok()?;
                if !line.starts_with('$') {
                    answer = format!("{answer} {}", line.trim());
                }
            }
        }
        _ => return None,
    }
    Some(answer)
}

#[track_caller]
fn ask_until(port: u16, words: &[&str]) -> String {
    let deadline = Instant::now() + BOOT_TIMEOUT;
    loop {
        if let Some(answer) = ask(port, words) {
            return answer;
        }
        assert!(Instant::now() < deadline, "Redis does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the guest's clock says, in microseconds since 1970.
fn time_us(port: u16) -> i128 {
    let answer = ask_until(port, &["TIME"]);
    let parts: Vec<i128> = answer.split_whitespace().map(|part| part.parse().unwrap()).collect();
    parts[0] * 1_000_000 + parts[1]
}

#[test]
fn debian_goes_on_after_an_hour_with_its_data_and_the_right_time() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let port = free_port();
    let forward = format!("{port}:6379");
    let run = ["run", "--guest", "debian", "--name", "db", "--forward", &forward];
    let running = Running(command(folder, &run).spawn().unwrap());
    ask_until(port, &["PING"]);
    assert_eq!(ask_until(port, &["SET", "kept", "yes"]), "OK");
    let before_us = time_us(port);
    let made =
        command(folder, &["checkpoint", "db", "db.swc", "--json"]).stdout(Stdio::piped()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let taken_us = i128::from(made["taken_unix_ns"].as_u64().unwrap() / 1000);
    assert!((before_us - taken_us).abs() < TOLERANCE_US + 5_000_000, "the guest's clock is a clock");
    assert_eq!(ask_until(port, &["SET", "kept", "later"]), "OK", "the guest runs on");
    drop(running);

    let mut logs = Vec::new();
    for dir in ["one", "two"] {
        let port = free_port();
        let forward = format!("{port}:6379");
        let restore =
            ["restore", "db.swc", "--away", "3600", "--forward", &forward, "--record", dir, "--for", "600"];
        let spawned = Instant::now();
        let mut running = Running(command(folder, &restore).spawn().unwrap());
        assert_eq!(ask_until(port, &["GET", "kept"]), "yes", "as it was at the checkpoint");
        let answered = Instant::now();
        let guest_us = time_us(port);
        // It went live between the two: so much has passed since, at least and at most.
        let least_us = taken_us + HOUR_US - TOLERANCE_US;
        let most_us = taken_us + HOUR_US + spawned.elapsed().as_micros() as i128 + TOLERANCE_US;
        assert!((least_us..=most_us).contains(&guest_us), "{guest_us}, not {least_us} to {most_us}");
        assert!(guest_us > before_us, "never back");
        let later_us = time_us(port);
        assert!(later_us >= guest_us && answered.elapsed().as_micros() as i128 >= 0);
        let stopped = command(folder, &["stop", "db"]).status().unwrap();
        assert!(stopped.success());
        assert!(running.0.wait().unwrap().success());
        logs.push(std::fs::read(folder.join(dir).join("00000000000000000002.log")).unwrap());
    }
    assert_ne!(logs[0], logs[1]);
    let replayed = command(folder, &["replay", "one"]).status().unwrap();
    assert!(replayed.success(), "the recording of a restored machine replays");
}
