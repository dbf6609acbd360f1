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

Examples:
  secondwind keygen keys a b      for a pair of hosts called a and b
  secondwind keygen keys c        later, for a third host")]
pub struct KeygenArgs {
    /// Folder to write to
    dir: PathBuf,
    /// Names of the nodes: letters a-z, digits and dashes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// How long the certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = link::keys::DEFAULT_VALIDITY.as_secs() / 86_400)]
    days: u64,
}

/// Runs `secondwind keygen`.
pub fn keygen(args: KeygenArgs) -> Result<()> {
    if !(1..=36_500).contains(&args.days) {
        bail!("--days {} is out of range; choose 1 to 36500", args.days);
    }
    let nodes: Vec<&str> = args.nodes.iter().map(String::as_str).collect();
    for path in link::keys::generate(&args.dir, &nodes, Duration::from_secs(args.days * 86_400))? {
        println!("{}", path.display());
    }
    Ok(())
}
