//! Linux tap devices: the guest's frames on the host's own network.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::libc;
use tokio::io::unix::AsyncFd;

use crate::error::PortError;

const DEVICE: &str = "/dev/net/tun";
/// The longest frame a tap hands over: 65,535 bytes of payload, the header and a VLAN tag.
const MAX_FRAME_BYTES: usize = 65_535 + 14 + 4;

/// A tap device this process is attached to. One that it created goes away with it.
pub(crate) struct Tap {
    file: Arc<File>,
}

/// The receiving half, for one task.
pub(crate) struct TapReceiver {
    file: AsyncFd<Arc<File>>,
    buffer: Vec<u8>,
}

impl Tap {
    /// Attaches to the tap `name`, creating it if there is none, and sees to it that it is up.
    pub(crate) fn open(name: &str) -> Result<Tap, PortError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|source| opening_failed(name, source))?;
        attach(&file, name).map_err(|errno| attaching_failed(name, errno))?;
        bring_up(name)?;
        Ok(Tap { file: Arc::new(file) })
    }

    /// Must be called inside a tokio runtime.
    pub(crate) fn receiver(&self, name: &str) -> Result<TapReceiver, PortError> {
        let file = Arc::clone(&self.file);
        // SAFETY: the `Arc` keeps the file open for as long as the `AsyncFd` lives, and a
        // `File` never changes its descriptor.
        let registered = unsafe { AsyncFd::register(file) };
        let file = registered.map_err(|error| PortError::TapIo {
            name: name.to_owned(),
            doing: "registering it for events",
            source: error.into(),
        })?;
        Ok(TapReceiver { file, buffer: vec![0; MAX_FRAME_BYTES] })
    }

    /// Sends without waiting.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&*self.file).write(frame).map(drop)
    }
}

impl TapReceiver {
    pub(crate) async fn receive(&mut self) -> io::Result<Bytes> {
        loop {
            let mut ready = self.file.readable().await?;
            let buffer = &mut self.buffer;
            if let Ok(read) = ready.try_io(|file| (&**file.get_ref()).read(buffer)) {
                return read.map(|bytes| Bytes::copy_from_slice(&self.buffer[..bytes]));
            }
        }
    }
}

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_read_bad!(read_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(write_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// A request about the device `name`, which [`crate::NetSpec`] keeps under 16 bytes.
fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: `ifreq` is a C struct of integers, byte arrays and pointers, for all of which
    // zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let longest = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..longest].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

fn attach(file: &File, name: &str) -> Result<(), Errno> {
    let request = request(name, libc::IFF_TAP | libc::IFF_NO_PI);
    // SAFETY: TUNSETIFF on an open /dev/net/tun takes a pointer to an `ifreq`; it reads the
    // name and the flags and keeps no pointer.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }.map(drop)
}

fn bring_up(name: &str) -> Result<(), PortError> {
    let failed = |doing| move |source: io::Error| PortError::TapIo { name: name.to_owned(), doing, source };
    // Any socket will do: these requests are about the device.
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(failed("opening a socket to configure it"))?;
    let mut found = request(name, 0);
    // SAFETY: SIOCGIFFLAGS takes a pointer to an `ifreq` with the name set, and writes the
    // flags into it.
    unsafe { ioctl::read_flags(socket.as_raw_fd(), &mut found) }
        .map_err(|errno| failed("reading its flags")(errno.into()))?;
    // SAFETY: SIOCGIFFLAGS succeeded, so the union holds the flags.
    let flags = libc::c_int::from(unsafe { found.ifr_ifru.ifru_flags });
    if flags & libc::IFF_UP != 0 {
        return Ok(());
    }
    let wanted = request(name, flags | libc::IFF_UP);
    // SAFETY: SIOCSIFFLAGS takes a pointer to an `ifreq` with name and flags set, and only
    // reads it.
    match unsafe { ioctl::write_flags(socket.as_raw_fd(), &wanted) } {
        Ok(_) => Ok(()),
        Err(Errno::EPERM | Errno::EACCES) => Err(PortError::TapDown { name: name.to_owned() }),
        Err(errno) => Err(failed("bringing it up")(errno.into())),
    }
}

fn opening_failed(name: &str, source: io::Error) -> PortError {
    let name = name.to_owned();
    match source.raw_os_error().map(Errno::from_raw) {
        // ENODEV and ENXIO: the node is there, the driver behind it is not.
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => PortError::TapMissing { name },
        Some(Errno::EACCES | Errno::EPERM) => PortError::TapPermission { name },
        _ => PortError::TapIo { name, doing: "opening /dev/net/tun", source },
    }
}

fn attaching_failed(name: &str, errno: Errno) -> PortError {
    let name = name.to_owned();
    match errno {
        Errno::EPERM | Errno::EACCES => PortError::TapPermission { name },
        Errno::EBUSY => PortError::TapInUse { name },
        Errno::EINVAL => PortError::TapForeign { name },
        errno => PortError::TapIo { name, doing: "attaching to it", source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_names_the_way_out() {
        let opened = |errno: Errno| opening_failed("sw0", errno.into()).to_string();
        let attached = |errno| attaching_failed("sw0", errno).to_string();
        for (error, way_out) in [
            (opened(Errno::ENOENT), "--net tunnel:HOST:PORT"),
            (opened(Errno::ENODEV), "modprobe tun"),
            (opened(Errno::EACCES), "--forward"),
            (attached(Errno::EPERM), "ip tuntap add sw0"),
            (attached(Errno::EBUSY), "in use"),
            (attached(Errno::EINVAL), "ip link delete sw0"),
            (attached(Errno::ENOMEM), "ip -d link show sw0"),
        ] {
            assert!(error.contains("sw0") && error.contains(way_out), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_long_name_is_cut_and_ends_in_zero() {
        let request = request("0123456789abcdefgh", 0);
        assert_eq!(request.ifr_name[15], 0);
        assert_eq!(request.ifr_name[14] as u8, b'e');
    }
}
