use proptest::prelude::*;

use super::*;

fn net(text: &str) -> NetSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    let error = text.parse::<NetSpec>().unwrap_err().to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

#[test]
fn every_kind_parses() {
    assert_eq!(net("none"), NetSpec::NONE);
    assert_eq!(net("tap:sw0").kind, NetKind::Tap("sw0".to_owned()));
    assert_eq!(
        net("tunnel:switch.example:4789,mac=52:54:00:00:00:01"),
        NetSpec {
            kind: NetKind::Tunnel { host: "switch.example".to_owned(), port: 4789 },
            mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])),
        }
    );
    assert_eq!(net("tunnel:[::1]:9").kind, NetKind::Tunnel { host: "::1".to_owned(), port: 9 });
    let user = net("user,forward=8080:80,mac=52:54:00:00:00:01,forward=tcp::0-10.0.2.9:22");
    assert_eq!(user.forwards().len(), 2);
    assert_eq!(user.forwards()[1].guest.to_string(), "10.0.2.9:22");
}

#[test]
fn forwards_parse_as_people_know_them() {
    for (text, host, guest) in [
        ("6379:6379", "127.0.0.1:6379", "10.0.2.15:6379"),
        ("127.0.0.1:8080:80", "127.0.0.1:8080", "10.0.2.15:80"),
        ("0.0.0.0:8080:80", "0.0.0.0:8080", "10.0.2.15:80"),
        ("[::1]:8080:80", "[::1]:8080", "10.0.2.15:80"),
        ("tcp:127.0.0.1:6379-:6379", "127.0.0.1:6379", "10.0.2.15:6379"),
        ("tcp::6379-:6379", "127.0.0.1:6379", "10.0.2.15:6379"),
        ("tcp::2222-10.0.2.16:22", "127.0.0.1:2222", "10.0.2.16:22"),
    ] {
        let forward: Forward = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(forward.host.to_string(), host, "{text}");
        assert_eq!(forward.guest.to_string(), guest, "{text}");
    }
}

#[test]
fn errors_say_what_was_found_and_give_an_example() {
    for (text, found, example) in [
        ("", "\"\"", "--net tunnel:"),
        ("bridge:br0", "bridge:br0", "--net tunnel:"),
        ("tap", "\"\"", "--net tap:sw0"),
        ("tap:a/b", "a/b", "--net tap:sw0"),
        ("tap:much-too-long-name", "much-too-long-name", "--net tap:sw0"),
        ("tunnel:host", "host", "--net tunnel:192.0.2.1:4789"),
        ("tunnel:host:0", "host:0", "--net tunnel:192.0.2.1:4789"),
        ("tunnel:host:+1", "host:+1", "--net tunnel:192.0.2.1:4789"),
        ("tunnel:::1:9", "::1:9", "[2001:db8::1]"),
        ("tunnel:[::1:9", "[::1:9", "[2001:db8::1]"),
        ("none,mac=52:54:00:00:00:01", "none,mac", "--net none"),
        ("none:x", "none:x", "--net none"),
        ("user:x", "user:x", "--net user"),
        ("user,port=1", "port=1", "user,forward=8080:80"),
        ("tap:sw0,forward=1:1", "forward=1:1", "tap:sw0,mac="),
        ("user,mac=1", "\"1\"", "52:54:00:12:34:56"),
        ("user,forward=80", "\"80\"", "127.0.0.1:8080:80"),
        ("user,forward=1:0", "guest port", "127.0.0.1:8080:80"),
        ("user,forward=udp::1-:1", "only tcp", "127.0.0.1:8080:80"),
        ("user,forward=here:1:1", "host address", "127.0.0.1:8080:80"),
        ("user,forward=tcp:1:1", "no '-'", "127.0.0.1:8080:80"),
        ("user,forward=66000:1", "host port", "127.0.0.1:8080:80"),
    ] {
        let error = refusal(text);
        assert!(error.contains(found), "{text}: {error}");
        assert!(error.contains(example), "{text}: {error}");
    }
    assert!(refusal("user,mac=52:54:00:00:00:01,mac=52:54:00:00:00:02").contains("twice"));
}

proptest! {
    #[test]
    fn any_text_is_a_value_or_an_error(text in "(tap|tunnel|user|none)?[:,a-z0-9=.\\[\\]-]{0,40}") {
        if let Ok(spec) = text.parse::<NetSpec>() {
            prop_assert_eq!(spec.to_string().parse::<NetSpec>(), Ok(spec));
        }
    }

    #[test]
    fn a_forward_goes_to_text_and_back(host: [u8; 4], guest: [u8; 4], from: u16, to in 1u16..) {
        let forward = Forward {
            host: SocketAddr::new(IpAddr::from(host), from),
            guest: SocketAddrV4::new(Ipv4Addr::from(guest), to),
        };
        prop_assert_eq!(forward.to_string().parse::<Forward>(), Ok(forward));
    }
}
