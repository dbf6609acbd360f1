//! Scenario files, right and wrong.

use super::super::step::{Action, Role, Who};
use super::*;

const LEAST: &str = "name = \"least\"\ndescription = \"Nothing.\"\n[expect]\ntakeovers = 0\n";

fn error(text: &str) -> String {
    Scenario::parse(text, "x.toml").unwrap_err().to_string()
}

#[test]
fn what_is_not_said_has_a_default() {
    let scenario = Scenario::parse(LEAST, "x.toml").unwrap();
    assert_eq!((scenario.hosts, scenario.backups, scenario.guest), (2, 1, Guest::Ledger));
    assert_eq!(scenario.expect.takeovers, Some(0));
    assert!(scenario.expect.protected && scenario.expect.digests && scenario.steps.is_empty());
}

#[test]
fn steps_say_when_and_what() {
    let text = format!(
        "{}hosts = 3\n[[step]]\nafter-ms = 5\nkill = [\"a\", \"backup\"]\n[[step]]\nwait-for = \"b live\"\nwithin-ms = 7\n\
         start = \"a\"\nas = \"primary\"\n[[step]]\nlink = \"a-c\"\ncut = \"to-c\"\ndelay-ms = 3\n[expect]\ntakeovers = \"any\"\n",
        LEAST.split("[expect]").next().unwrap()
    );
    let scenario = Scenario::parse(&text, "x.toml").unwrap();
    let [kill, start, link] = &scenario.steps[..] else { panic!("three steps") };
    assert_eq!(kill.after, Duration::from_millis(5));
    assert_eq!(kill.action, Some(Action::Kill(vec![Who::Host(Host(0)), Who::Backup])));
    assert_eq!(start.wait_for, Some(Condition::Live(Who::Host(Host(1)))));
    assert_eq!(start.within, Duration::from_millis(7));
    assert_eq!(start.action, Some(Action::Start(vec![Who::Host(Host(0))], Role::Primary)));
    let Some(Action::Link(change)) = &link.action else { panic!("a link") };
    assert_eq!(change.to_string(), "the link a-c carries nothing to c, takes 3 ms each way");
    assert_ne!(change.there.cut, change.back.cut);
    assert_eq!(scenario.expect.takeovers, None);
}

#[test]
fn mistakes_are_told_with_their_line() {
    let head = "name = \"x\"\ndescription = \"\"\n";
    let foot = "\n[expect]\ntakeovers = 0\n";
    let cases = [
        (format!("{head}colour = 1{foot}"), ":3:", "colour"),
        (format!("{head}[[step]]\nkil = \"a\"{foot}"), ":4:", "kil"),
        (format!("{head}[[step]]\nkill = \"c\"{foot}"), ":3:", "no host \"c\""),
        (format!("{head}[[step]]\nkill = \"a\"\nstop = \"a\"{foot}"), ":3:", "2 things"),
        (format!("{head}[[step]]\nkill = \"a\"\n[[step]]{foot}"), ":5:", "does nothing"),
        (format!("{head}[[step]]\nwait-for = \"rain\"{foot}"), ":3:", "rain"),
        (format!("{head}[[step]]\ncut = \"both\"{foot}"), ":3:", "say which"),
        (format!("{head}[[step]]\nlink = \"a-b\"\ncut = \"up\"{foot}"), ":3:", "to-a"),
        (format!("{head}[[step]]\nlink = \"a-b\"\nlost-percent = 101{foot}"), ":3:", "0 to 100"),
        (format!("{head}hosts = 9{foot}"), ":3:", "1 to 8"),
        (format!("{head}backups = 2{foot}"), ":3:", "need 3 hosts"),
        (format!("{head}memory = \"lots\"{foot}"), ":3:", "256M"),
        (format!("{head}[agents]\narbiter = \"dice\"{foot}"), ":4:", "dice"),
        (head.to_owned(), ":1:", "expect"),
        (format!("{head}[expect]\ntakeovers = \"some\"\n"), ":4:", "takeovers"),
        (format!("{head}[expect]\ntakeovers = 0\nexit = {{ a = \"gone\" }}\n"), ":5:", "killed"),
        ("name = \"A b\"\ndescription = \"\"\n[expect]\ntakeovers = 0\n".to_owned(), ":1:", "A b"),
    ];
    for (text, line, part) in cases {
        let error = error(&text);
        assert!(error.starts_with(&format!("x.toml{line}")) && error.contains(part), "{text}\n{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
