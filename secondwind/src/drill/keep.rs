//! What stays of a drill: everything when asked for, or when it failed; else nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;

use super::history::Operation;
use super::report::Report;

/// The report as JSON, with the verdict and what follows from the figures.
pub fn json(report: &Report) -> Result<String> {
    let mut value = serde_json::to_value(report)?;
    value["passed"] = json!(report.passed());
    value["measures"]["added_p50_us"] = json!(report.measures.added_p50_us());
    value["measures"]["added_p99_us"] = json!(report.measures.added_p99_us());
    Ok(format!("{value:#}\n"))
}

/// Moves the files of a machine to where they are to be kept and gives the place; removes
/// them when they are not wanted. Keys and sockets are never kept.
///
/// # Errors
/// When the files cannot be written there.
pub fn keep(
    wanted: Option<&Path>,
    name: Option<String>,
    folder: TempDir,
    report: &Report,
    operations: &[Operation],
) -> Result<Option<PathBuf>> {
    let kept = match wanted {
        Some(wanted) => name.map_or_else(|| wanted.to_owned(), |name| wanted.join(name)),
        None if report.passed() => return Ok(None),
        None => tempfile::Builder::new().prefix("secondwind-failed-").tempdir()?.keep(),
    };
    write_all(&kept, folder.path(), report, operations)
        .with_context(|| format!("cannot keep the drill's files in {}; free some space", kept.display()))?;
    Ok(Some(kept))
}

fn write_all(kept: &Path, from: &Path, report: &Report, operations: &[Operation]) -> Result<()> {
    std::fs::create_dir_all(kept)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
        }
    }
    std::fs::write(kept.join("report.json"), json(report)?)?;
    std::fs::write(kept.join("report.html"), report.html(operations))?;
    std::fs::write(kept.join("history.json"), serde_json::to_vec(operations)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    fn machine_files() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.log"), "hello").unwrap();
        std::fs::create_dir(folder.path().join("keys")).unwrap();
        folder
    }

    #[test]
    fn a_failed_drill_leaves_its_files_and_a_passed_one_nothing() {
        let mut report = report();
        let kept = keep(None, None, machine_files(), &report, &[]).unwrap().unwrap();
        assert!(kept.join("a.log").exists() && kept.join("report.html").exists());
        assert!(!kept.join("keys").exists());
        std::fs::remove_dir_all(kept).unwrap();

        report.checks.iter_mut().for_each(|check| check.held = true);
        assert_eq!(keep(None, None, machine_files(), &report, &[]).unwrap(), None);
    }

    #[test]
    fn machines_of_a_long_drill_are_kept_apart() {
        let folder = tempfile::tempdir().unwrap();
        let kept = keep(Some(folder.path()), Some("machine-3".into()), machine_files(), &report(), &[]);
        assert_eq!(kept.unwrap(), Some(folder.path().join("machine-3")));
    }
}
