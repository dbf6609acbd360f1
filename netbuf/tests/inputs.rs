//! Some thousand inputs from a fixed seed for each check of `fuzz/`.

#[path = "common/inputs.rs"]
mod inputs;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let folded = self.0 ^ (self.0 >> 29);
        folded.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.next() % most).map(|_| self.next() as u8).collect()
    }

    /// One of the samples with a byte changed, cut or doubled here and there.
    fn variation(&mut self, samples: &[&[u8]]) -> Vec<u8> {
        let mut bytes = samples[(self.next() % samples.len() as u64) as usize].to_vec();
        for _ in 0..self.next() % 4 {
            let at = (self.next() % (bytes.len() as u64 + 1)) as usize;
            match self.next() % 3 {
                0 => bytes.insert(at, self.next() as u8),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = self.next() as u8),
            }
        }
        bytes
    }
}

#[test]
fn datagrams() {
    let mut random = Random(1);
    for _ in 0..20_000 {
        let bytes = random.bytes(120);
        inputs::datagram(&bytes);
        inputs::datagram_resealed(&bytes);
    }
}

#[test]
fn guest_frames() {
    let mut random = Random(2);
    let mac = netbuf::MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    let arp = netbuf::announce::gratuitous_arp_reply(mac, std::net::Ipv4Addr::new(10, 0, 2, 15));
    for _ in 0..5_000 {
        inputs::guest_frame(&random.bytes(80));
        inputs::guest_frame(&random.variation(&[&arp]));
    }
}

#[test]
fn specifications() {
    let mut random = Random(3);
    let samples: [&[u8]; 6] = [
        b"tap:sw0,mac=52:54:00:12:34:56",
        b"tunnel:[2001:db8::1]:4789",
        b"user,forward=tcp:127.0.0.1:6379-:6379,forward=8080:80",
        b"none",
        b"tcp:[::1]:80-10.0.2.15:80",
        b"127.0.0.1:8080:80",
    ];
    for _ in 0..20_000 {
        inputs::specification(&random.variation(&samples));
    }
}
