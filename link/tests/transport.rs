//! Connections over real sockets: both protections, wrong keys, ends of every kind.

#![allow(clippy::unwrap_used)]

use link::keys::{DEFAULT_VALIDITY, KeyPaths, NodeKeys, generate};
use link::tls::{PairTls, Security};
use link::transport::{
    Connection, Listener, Reservation, SendError, TransportConfig, TransportError, connect,
};
use log_format::{Ack, CheckpointPart, Goodbye, GoodbyeReason, Heartbeat, Message, Moment, Page};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Keys of a pair in a directory of their own.
struct PairKeys {
    directory: tempfile::TempDir,
}

impl PairKeys {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path(), &["alpha", "beta"], DEFAULT_VALIDITY).unwrap();
        PairKeys { directory }
    }

    fn node(&self, node: &str) -> Security {
        security(self.directory.path(), node)
    }
}

fn security(directory: &Path, node: &str) -> Security {
    let keys = NodeKeys::load(&KeyPaths::in_directory(directory, node)).unwrap();
    Security::Tls(Arc::new(PairTls::new(keys).unwrap()))
}

async fn listen(security: Security) -> (Listener, Vec<String>) {
    let config = TransportConfig::default();
    let listener = Listener::bind("127.0.0.1:0", security, config).await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    (listener, vec![address])
}

/// A listener of the first security and a dialer of the second, connected.
async fn connected(server: Security, client: Security) -> (Connection, Connection) {
    let (mut listener, addresses) = listen(server).await;
    let config = TransportConfig::default();
    let (accepted, dialed) = tokio::join!(listener.accept(), connect(&addresses, &client, config));
    (accepted.unwrap(), dialed.unwrap())
}

/// What each side says when the two do not agree: the listener, the dialer.
async fn errors(server: Security, client: Security) -> (TransportError, TransportError) {
    let (mut listener, addresses) = listen(server).await;
    let accept = async {
        match listener.accept().await {
            Err(error) => error,
            Ok(mut connection) => connection.receiver.receive().await.unwrap_err(),
        }
    };
    let dial = async {
        match connect(&addresses, &client, TransportConfig::default()).await {
            Err(error) => error,
            // With TLS 1.3 the dialer is done before the listener has seen its certificate.
            Ok(mut connection) => {
                let _ = connection.sender.try_send(&ack(1));
                connection.receiver.receive().await.unwrap_err()
            }
        }
    };
    tokio::join!(accept, dial)
}

fn ack(sequence: u64) -> Message {
    Message::Ack(Ack { term: 1, sequence, durable: true })
}

fn heartbeat(sent_ns: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        term: 3,
        after_sequence: 17,
        sent_ns,
        mark: Some(Moment::BOOT),
        released_outputs: 4,
        required: true,
    })
}

/// Pages whose bytes do not compress.
fn pages(count: u64, seed: u64) -> Message {
    let mut state = seed;
    let mut page = || {
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state.rotate_left(17).to_le_bytes()
        });
        words.take(512).flatten().collect::<Vec<u8>>()
    };
    let pages = (0..count).map(|index| Page { index, data: Some(page().into()) });
    Message::CheckpointPart(CheckpointPart { pages: pages.collect(), blocks: Vec::new() })
}

#[tokio::test]
async fn messages_pass_both_ways_in_order_under_tls_with_the_nodes_names() {
    let keys = PairKeys::new();
    let (mut primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    assert_eq!(primary.peer.node.as_deref(), Some("beta"));
    assert_eq!(backup.peer.node.as_deref(), Some("alpha"));
    for round in 0..200 {
        primary.sender.try_send(&heartbeat(round)).unwrap();
        backup.sender.try_send(&ack(round)).unwrap();
    }
    for round in 0..200 {
        assert_eq!(backup.receiver.receive().await.unwrap(), Some(heartbeat(round)));
        assert_eq!(primary.receiver.receive().await.unwrap(), Some(ack(round)));
    }
}

#[tokio::test]
async fn plain_tcp_passes_messages_and_vouches_for_no_name() {
    let (mut primary, backup) = connected(Security::Insecure, Security::Insecure).await;
    assert_eq!(primary.peer.node, None);
    backup.sender.try_send(&ack(1)).unwrap();
    assert_eq!(primary.receiver.receive().await.unwrap(), Some(ack(1)));
}

/// No task runs between two lines without an `await`: the runtime of these tests has this thread alone.
#[tokio::test]
async fn little_leaves_in_the_call_and_much_is_left_to_the_writer() {
    let keys = PairKeys::new();
    let (primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    let sender = &primary.sender;
    sender.queue(&heartbeat(1)).unwrap();
    sender.queue(&heartbeat(2)).unwrap();
    assert_eq!(sender.counters().sent_messages, 0);
    sender.write_out();
    assert_eq!((sender.counters().sent_messages, sender.queued_bytes()), (2, (0, 0)));
    // A checkpoint is not for the thread that has it, nor is what comes behind one.
    sender.queue(&pages(64, 1)).unwrap();
    sender.queue(&heartbeat(3)).unwrap();
    sender.write_out();
    assert_eq!(sender.counters().sent_messages, 2);
    for expected in [heartbeat(1), heartbeat(2), heartbeat(3), pages(64, 1)] {
        assert!(backup.receiver.receive().await.unwrap() == Some(expected));
    }
    assert!(!backup.receiver.has_next());
    assert_eq!(sender.counters().sent_messages, 4);
}

#[tokio::test]
async fn what_the_kernel_takes_no_more_of_leaves_later_in_order() {
    let keys = PairKeys::new();
    let (primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    // Nobody reads meanwhile, so that the buffers of both kernels fill up.
    let mut queued = 0;
    while primary.sender.queue(&heartbeat(queued)).is_ok() {
        primary.sender.write_out();
        queued += 1;
    }
    let (log_bytes, _) = primary.sender.queued_bytes();
    assert!(log_bytes > 1 << 20, "{log_bytes} bytes of the log wait");
    for round in 0..queued {
        assert_eq!(backup.receiver.receive().await.unwrap(), Some(heartbeat(round)));
    }
    primary.sender.shutdown().await;
    assert_eq!(backup.receiver.receive().await.unwrap(), None);
}

#[tokio::test]
async fn a_checkpoint_passes_a_narrow_queue_whole() {
    let keys = PairKeys::new();
    let (primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    let sending = async {
        for seed in 0..40 {
            primary.sender.send(&pages(64, seed)).await.unwrap();
        }
        primary.sender.shutdown().await;
    };
    let receiving = async {
        for seed in 0..40 {
            let received = backup.receiver.receive().await.unwrap();
            assert!(received == Some(pages(64, seed)), "part {seed} differs");
        }
        assert_eq!(backup.receiver.receive().await.unwrap(), None);
    };
    tokio::join!(sending, receiving);
    let counters = backup.sender.counters();
    assert_eq!(counters.received_messages, 40);
    assert!(counters.received_bytes > 40 * 64 * 4096);
}

#[tokio::test]
async fn a_sender_that_outruns_the_link_is_told() {
    let (primary, _backup) = connected(Security::Insecure, Security::Insecure).await;
    let mut queued = 0;
    let error = loop {
        match primary.sender.try_send(&pages(64, queued)) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SendError::Full { .. }), "{error}");
    // The log has a lane of its own.
    primary.sender.try_send(&heartbeat(1)).unwrap();
}

#[tokio::test]
async fn shutdown_sends_what_is_queued_and_then_the_end() {
    let keys = PairKeys::new();
    let (mut primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    let goodbye = Message::Goodbye(Goodbye { term: 1, reason: GoodbyeReason::Stopping, text: "bye".into() });
    primary.sender.try_send(&goodbye).unwrap();
    primary.sender.shutdown().await;
    assert!(matches!(primary.sender.try_send(&ack(1)), Err(SendError::Closed)));
    assert_eq!(backup.receiver.receive().await.unwrap(), Some(goodbye));
    assert_eq!(backup.receiver.receive().await.unwrap(), None);
    // The other direction is open until its own end.
    backup.sender.try_send(&ack(9)).unwrap();
    drop(backup.sender);
    assert_eq!(primary.receiver.receive().await.unwrap(), Some(ack(9)));
    assert_eq!(primary.receiver.receive().await.unwrap(), None);
}

#[tokio::test]
async fn an_abort_ends_both_halves_and_the_peer_notices() {
    let keys = PairKeys::new();
    let (mut primary, mut backup) = connected(keys.node("alpha"), keys.node("beta")).await;
    let sender = primary.sender.clone();
    let receiving = primary.receiver.receive();
    let aborting = async { sender.abort() };
    let (received, ()) = tokio::join!(receiving, aborting);
    assert!(matches!(received, Err(TransportError::Aborted { .. })));
    drop(primary);
    assert!(backup.receiver.receive().await.is_err());
}

#[tokio::test]
async fn a_wrong_key_gives_one_clear_line_on_both_sides() {
    let (keys, other) = (PairKeys::new(), PairKeys::new());
    let (listener, dialer) = errors(keys.node("alpha"), other.node("beta")).await;
    for error in [listener, dialer] {
        let line = error.to_string();
        assert!(line.contains("(wrong key"), "{line}");
        assert!(line.contains("secondwind keygen"), "{line}");
        assert!(!line.contains('\n'));
    }
}

#[tokio::test]
async fn a_node_does_not_talk_to_its_own_keys() {
    let keys = PairKeys::new();
    let (listener, dialer) = errors(keys.node("alpha"), keys.node("alpha")).await;
    assert!(listener.to_string().contains("this very node, alpha"), "{listener}");
    assert!(dialer.to_string().contains("this very node, alpha"), "{dialer}");
}

#[tokio::test]
async fn insecure_on_one_side_only_is_named() {
    let keys = PairKeys::new();
    for (server, client) in
        [(keys.node("alpha"), Security::Insecure), (Security::Insecure, keys.node("beta"))]
    {
        let (listener, dialer) = errors(server, client).await;
        assert!(listener.to_string().contains("--insecure"), "{listener}");
        assert!(dialer.to_string().contains("--insecure"), "{dialer}");
    }
}

#[tokio::test]
async fn a_stranger_that_says_nothing_keeps_nobody_waiting() {
    let keys = PairKeys::new();
    let (mut listener, addresses) = listen(keys.node("alpha")).await;
    let silent = TcpStream::connect(&addresses[0]).await.unwrap();
    let config = TransportConfig::default();
    let beta = keys.node("beta");
    let (accepted, dialed) = tokio::join!(listener.accept(), connect(&addresses, &beta, config));
    assert_eq!(accepted.unwrap().peer.node.as_deref(), Some("beta"));
    dialed.unwrap();
    drop(silent);
}

#[tokio::test]
async fn other_protocols_and_torn_messages_are_told_apart() {
    let (mut listener, addresses) = listen(Security::Insecure).await;
    let mut stranger = TcpStream::connect(&addresses[0]).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let error = connection.receiver.receive().await.unwrap_err();
    assert!(matches!(error, TransportError::Frame { .. }), "{error}");

    let mut cut = TcpStream::connect(&addresses[0]).await.unwrap();
    let bytes = ack(1).encode().unwrap();
    cut.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    cut.shutdown().await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let error = connection.receiver.receive().await.unwrap_err();
    assert!(matches!(error, TransportError::Cut { found, .. } if found == bytes.len() - 1), "{error}");
}

#[tokio::test]
async fn a_peer_killed_under_tls_is_an_error_and_not_an_orderly_end() {
    let keys = PairKeys::new();
    let (mut listener, addresses) = listen(keys.node("alpha")).await;
    // A relay that dies as a killed process does: its sockets close, TLS says nothing.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay_address = vec![relay.local_addr().unwrap().to_string()];
    let forward = tokio::spawn(async move {
        let (mut client, _) = relay.accept().await.unwrap();
        let mut server = TcpStream::connect(&addresses[0]).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let beta = keys.node("beta");
    let config = TransportConfig::default();
    let (accepted, dialed) = tokio::join!(listener.accept(), connect(&relay_address, &beta, config));
    let (mut primary, backup) = (accepted.unwrap(), dialed.unwrap());
    backup.sender.try_send(&ack(1)).unwrap();
    assert_eq!(primary.receiver.receive().await.unwrap(), Some(ack(1)));
    forward.abort();
    let error = primary.receiver.receive().await.unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn the_first_address_that_answers_is_taken_and_none_is_an_error() {
    let (mut listener, addresses) = listen(Security::Insecure).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let config = TransportConfig::default();
    let both = vec![closed_address.clone(), addresses[0].clone()];
    let (accepted, dialed) = tokio::join!(listener.accept(), connect(&both, &Security::Insecure, config));
    accepted.unwrap();
    dialed.unwrap();
    let none = [closed_address.clone()];
    let error = connect(&none, &Security::Insecure, config).await.unwrap_err();
    assert!(error.to_string().contains(&closed_address), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let (_listener, addresses) = listen(Security::Insecure).await;
    let config = TransportConfig::default();
    let error = Listener::bind(&addresses[0], Security::Insecure, config).await.unwrap_err();
    assert!(error.to_string().contains("choose another"), "{error}");
    // Whoever connects to a port that is only taken, not served, gets no bytes.
    let mut stream = TcpStream::connect(&addresses[0]).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(_listener);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_port_that_is_only_taken_turns_callers_away_and_can_be_listened_on_again() {
    let config = TransportConfig::default();
    let mut reservation = Reservation::bind("127.0.0.1:0", Security::Insecure, config).await.unwrap();
    let address = reservation.local_address().unwrap().to_string();
    for _ in 0..3 {
        let refused = connect(std::slice::from_ref(&address), &Security::Insecure, config).await;
        assert!(matches!(refused, Err(TransportError::Unreachable { .. })));
        let mut listener = reservation.listen().unwrap();
        let addresses = [address.clone()];
        let dialled = connect(&addresses, &Security::Insecure, config);
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        let _connections = (dialled.unwrap(), accepted.unwrap());
        // Its connections live on; nobody new comes in.
        reservation = listener.leave().unwrap();
    }
}

#[tokio::test]
async fn a_silent_address_does_not_hold_up_the_way_to_a_living_one() {
    // A full backlog answers nothing, as a dead host does.
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let silent = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let dialled =
            tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(silent));
        waiting.extend(dialled.await.ok());
    }
    let (mut listener, living) = listen(Security::Insecure).await;
    let addresses = [vec![silent.to_string()], living.clone()].concat();
    let config = TransportConfig { connect_timeout: Duration::from_secs(3600), ..TransportConfig::default() };
    let dialled = connect(&addresses, &Security::Insecure, config);
    let (dialled, _accepted) = tokio::join!(dialled, listener.accept());
    assert_eq!(dialled.unwrap().peer.address.to_string(), living[0]);
}

#[tokio::test]
async fn a_host_that_takes_connections_and_says_nothing_does_not_hide_another() {
    let keys = PairKeys::new();
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut addresses = vec![mute.local_addr().unwrap().to_string(), rude.local_addr().unwrap().to_string()];
    let hang_up = tokio::spawn(async move {
        while let Ok((connection, _)) = rude.accept().await {
            drop(connection);
        }
    });
    let (mut listener, own) = listen(keys.node("alpha")).await;
    addresses.extend(own);
    let security = keys.node("beta");
    let (accepted, dialed) =
        tokio::join!(listener.accept(), connect(&addresses, &security, TransportConfig::default()));
    accepted.unwrap();
    dialed.unwrap();
    hang_up.abort();
}

#[tokio::test]
async fn who_only_looks_whether_somebody_listens_is_told_apart() {
    let keys = PairKeys::new();
    let (mut listener, addresses) = listen(keys.node("alpha")).await;
    drop(TcpStream::connect(&addresses[0]).await.unwrap());
    assert!(matches!(listener.accept().await, Err(TransportError::LeftSilently { .. })));
}
