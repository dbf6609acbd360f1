//! `secondwind keygen`: the keys with which the hosts of a pair know each other.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

/// Makes the keys with which the hosts of a pair know each other.
#[derive(clap::Args)]
#[command(after_help = "\
Writes into DIR a certificate authority (ca.pem, ca.key) and for each NODE a certificate and a
key. Copy ca.pem, NODE.pem and NODE.key to NODE's host; keep ca.key elsewhere. Where DIR holds
an authority already, keys for further nodes are added to it. Nothing is ever overwritten.

With --sign or --encrypt it makes a key for checkpoint files instead: one that signs, with its public
key in FILE.pub for those who restore, or one that encrypts.

Examples:
  secondwind keygen keys a b               for a pair of hosts called a and b
  secondwind keygen keys c                 later, for a third host
  secondwind keygen --sign host-a.key      signs checkpoints; others trust host-a.key.pub
  secondwind keygen --encrypt secret.key   encrypts and decrypts checkpoints")]
pub struct KeygenArgs {
    /// Folder to write to
    #[arg(required_unless_present_any = ["sign", "encrypt"])]
    dir: Option<PathBuf>,
    /// Names of the nodes: letters a-z, digits and dashes
    #[arg(value_name = "NODE", required_unless_present_any = ["sign", "encrypt"])]
    nodes: Vec<String>,
    /// Make a key that signs checkpoints
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "nodes"])]
    sign: Option<PathBuf>,
    /// Make a key that encrypts checkpoints
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "nodes"])]
    encrypt: Option<PathBuf>,
    /// How long the certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = link::keys::DEFAULT_VALIDITY.as_secs() / 86_400)]
    days: u64,
}

/// Runs `secondwind keygen`.
pub fn keygen(args: KeygenArgs) -> Result<()> {
    if !(1..=36_500).contains(&args.days) {
        bail!("--days {} is out of range; choose 1 to 36500", args.days);
    }
    if let Some(path) = &args.sign {
        for path in store::checkpoint::generate_signing(path)? {
            println!("{}", path.display());
        }
    }
    if let Some(path) = &args.encrypt {
        store::checkpoint::generate_secret(path)?;
        println!("{}", path.display());
    }
    let Some(dir) = &args.dir else { return Ok(()) };
    let nodes: Vec<&str> = args.nodes.iter().map(String::as_str).collect();
    for path in link::keys::generate(dir, &nodes, Duration::from_secs(args.days * 86_400))? {
        println!("{}", path.display());
    }
    Ok(())
}
