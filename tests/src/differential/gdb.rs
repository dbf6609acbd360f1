//! As much of the GDB remote protocol as it takes to walk QEMU instruction by instruction.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::encode::csr;
use super::oracle::{Oracle, OracleError, Running};

/// How long the stub may take to appear, and to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const CONNECT_ATTEMPTS: u32 = 1000;
const CONNECT_INTERVAL: Duration = Duration::from_millis(5);

/// Registers in the answer to `g`: x0 to x31 and pc.
const CORE_REGISTERS: usize = 33;
/// Number of f0, and the files that describe where CSRs are.
const FLOAT_BASE: u32 = 33;
const CSR_DESCRIPTION: &str = "riscv-csr.xml";

/// CSRs that are compared after each step.
pub const WATCHED_CSRS: [(&str, u32); 9] = [
    ("fcsr", csr::FCSR),
    ("mstatus", csr::MSTATUS),
    ("mepc", csr::MEPC),
    ("mcause", csr::MCAUSE),
    ("mtval", csr::MTVAL),
    ("sepc", csr::SEPC),
    ("scause", csr::SCAUSE),
    ("stval", csr::STVAL),
    ("satp", csr::SATP),
];

/// All registers that are compared after each step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// Integer registers and, last, pc.
    pub core: [u64; CORE_REGISTERS],
    /// Float registers.
    pub float: [u64; 32],
    /// [`WATCHED_CSRS`].
    pub csrs: [u64; WATCHED_CSRS.len()],
}

/// A QEMU that waits for the next command.
#[derive(Debug)]
pub struct Stub {
    running: Running,
    stream: BufReader<UnixStream>,
    csr_base: u32,
}

impl Stub {
    /// Starts QEMU, stopped at its first instruction.
    ///
    /// # Errors
    /// When it cannot be started, or its stub does not answer.
    pub fn start(oracle: &Oracle, memory: &[(u64, Vec<u8>)]) -> Result<Stub, OracleError> {
        let folder = tempfile::Builder::new().prefix("secondwind-stub-").tempdir().map_err(failed)?;
        let path = folder.path().join("gdb");
        let listen = format!("unix:{},server=on,wait=off", path.display());
        let running = oracle.start(memory, &["-S".into(), "-gdb".into(), listen])?;
        let mut attempts = 0;
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if attempts == CONNECT_ATTEMPTS => return Err(failed(error)),
                Err(_) => std::thread::sleep(CONNECT_INTERVAL),
            }
            attempts += 1;
        };
        stream.set_read_timeout(Some(ANSWER_PATIENCE)).map_err(failed)?;
        let mut stub = Stub { running, stream: BufReader::new(stream), csr_base: 0 };
        stub.ask("qSupported:xmlRegisters=riscv;qXfer:features:read+")?;
        stub.find_csrs()?;
        // Single steps take interrupts, as ours do.
        stub.ask("Qqemu.sstep=1")?;
        Ok(stub)
    }

    /// The machine's memory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn memory(&self, address: u64, len: usize) -> Result<Vec<u8>, OracleError> {
        self.running.memory(address, len)
    }

    /// Goes on until `address` is reached.
    ///
    /// # Errors
    /// When the stub does not answer.
    pub fn run_to(&mut self, address: u64) -> Result<(), OracleError> {
        self.ask(&format!("Z0,{address:x},4"))?;
        self.ask("c")?;
        self.ask(&format!("z0,{address:x},4"))?;
        Ok(())
    }

    /// Executes one instruction. Returns whether the machine is on.
    ///
    /// # Errors
    /// When the stub does not answer.
    pub fn step(&mut self) -> Result<bool, OracleError> {
        Ok(self.ask("s")?.starts_with('T'))
    }

    /// The registers.
    ///
    /// # Errors
    /// When the stub does not answer.
    pub fn registers(&mut self) -> Result<Registers, OracleError> {
        let answer = self.ask("g")?;
        let mut core = [0; CORE_REGISTERS];
        for (register, value) in core.iter_mut().enumerate() {
            *value = number(answer.get(register * 16..register * 16 + 16).unwrap_or_default())?;
        }
        let (mut float, mut csrs) = ([0; 32], [0; WATCHED_CSRS.len()]);
        for (register, value) in (FLOAT_BASE..).zip(&mut float) {
            *value = self.register(register)?;
        }
        for ((_, csr), value) in WATCHED_CSRS.into_iter().zip(&mut csrs) {
            // `fcsr` may be out of reach while the float registers are off.
            *value = self.register(self.csr_base + csr).unwrap_or(0);
        }
        Ok(Registers { core, float, csrs })
    }

    fn register(&mut self, register: u32) -> Result<u64, OracleError> {
        number(&self.ask(&format!("p{register:x}"))?)
    }

    /// The CSRs' numbers depend on QEMU's version: its own description tells.
    fn find_csrs(&mut self) -> Result<(), OracleError> {
        for name in [CSR_DESCRIPTION, "riscv-64bit-csr.xml", "target.xml"] {
            let text = self.ask(&format!("qXfer:features:read:{name}:0,ffff"))?;
            let Some(at) = text.find("\"fcsr\"") else { continue };
            // The register's attributes come in any order.
            let start = text[..at].rfind('<').unwrap_or(0);
            let end = at + text[at..].find('>').unwrap_or(0);
            let Some(place) = text[start..end].find("regnum=\"") else { continue };
            let digits: String = text[start + place + 8..].chars().take_while(char::is_ascii_digit).collect();
            let regnum: u32 = digits.parse().map_err(|_| OracleError::Stub("no register number".into()))?;
            self.csr_base = regnum - csr::FCSR;
            return Ok(());
        }
        Err(OracleError::Stub("it does not describe fcsr".into()))
    }

    /// Sends a packet and takes the answer to it.
    fn ask(&mut self, packet: &str) -> Result<String, OracleError> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        let stream = self.stream.get_mut();
        stream.write_all(format!("${packet}#{sum:02x}").as_bytes()).map_err(failed)?;
        while self.byte()? != b'$' {}
        let mut answer = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                b'}' => {
                    let escaped = self.byte()? ^ 0x20;
                    answer.push(escaped);
                }
                b'*' => {
                    // Run-length: a byte of count + 29 repeats the byte before.
                    let count = self.byte()?.saturating_sub(29);
                    let last = answer.last().copied().unwrap_or(b'0');
                    answer.extend(std::iter::repeat_n(last, count.into()));
                }
                byte => answer.push(byte),
            }
        }
        self.byte()?;
        self.byte()?;
        self.stream.get_mut().write_all(b"+").map_err(failed)?;
        String::from_utf8(answer).map_err(|_| OracleError::Stub("an answer is no text".into()))
    }

    fn byte(&mut self) -> Result<u8, OracleError> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).map_err(failed)?;
        Ok(byte[0])
    }
}

fn failed(error: std::io::Error) -> OracleError {
    OracleError::Stub(error.to_string())
}

/// A register, as hexadecimal digits in the guest's byte order.
fn number(digits: &str) -> Result<u64, OracleError> {
    let wrong = || OracleError::Stub(format!("no number: {digits:?}"));
    if digits.is_empty() || digits.len() > 16 || !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let mut value = 0;
    for at in (0..digits.len()).step_by(2) {
        let byte = digits.get(at..at + 2).and_then(|pair| u64::from_str_radix(pair, 16).ok());
        value |= byte.ok_or_else(wrong)? << (4 * at);
    }
    Ok(value)
}
