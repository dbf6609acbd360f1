//! Where scenarios come from: this program itself, files, folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::file::Scenario;

macro_rules! built_in {
    ($($file:literal)*) => {
        &[$(($file, include_str!(concat!("../../../../drills/", $file)))),*]
    };
}

/// The scenarios that come along, by the names of their files in `drills/`.
const BUILT_IN: &[(&str, &str)] = built_in! {
    "arbiter-gone-kill-backup.toml"
    "arbiter-gone-kill-primary.toml"
    "arbiter-gone.toml"
    "auto-kill-primary.toml"
    "checkpoint-kill-primary.toml"
    "corrupt-link.toml"
    "etcd-gone-kill-primary.toml"
    "etcd-kill-primary.toml"
    "etcd-one-less.toml"
    "full-disk-durable.toml"
    "full-log-disk-backup.toml"
    "full-log-disk-primary.toml"
    "hybrid-kill-primary.toml"
    "kill-backup.toml"
    "kill-both-checkpoint.toml"
    "kill-both.toml"
    "kill-in-turns.toml"
    "kill-primary-debian.toml"
    "kill-primary-manual.toml"
    "kill-primary.toml"
    "lossy-link.toml"
    "migrate.toml"
    "partition-to-backup.toml"
    "partition-to-primary.toml"
    "partition.toml"
    "pause-backup.toml"
    "pause-both.toml"
    "pause-primary-alone.toml"
    "pause-primary.toml"
    "replay-kill-primary.toml"
    "reset-link.toml"
    "rolling-upgrade.toml"
    "slow-disk-durable.toml"
    "slow-link-kill-primary.toml"
    "slow-link.toml"
    "slow-log-disk-backup.toml"
    "standby-takes-its-place.toml"
    "switchover.toml"
    "two-backups-any-kill-primary.toml"
    "two-backups-kill-both-in-turn.toml"
};

/// All scenarios that come along, in the order of their names.
///
/// # Errors
/// When one is wrong, which a test excludes.
pub fn built_in() -> Result<Vec<Scenario>> {
    BUILT_IN.iter().map(|(file, text)| Scenario::parse(text, file)).collect()
}

/// The scenarios that words on the command line name: files, folders of them, or those that
/// come along by their names.
///
/// # Errors
/// When one cannot be read or is wrong, or a folder has none.
pub fn named(words: &[PathBuf]) -> Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for word in words {
        if word.is_dir() {
            found.extend(in_folder(word)?);
        } else if let Some((file, text)) = built_in_named(word).filter(|_| !word.exists()) {
            found.push(Scenario::parse(text, file)?);
        } else {
            found.push(read(word)?);
        }
    }
    Ok(found)
}

fn built_in_named(word: &Path) -> Option<(&'static str, &'static str)> {
    let name = word.to_str()?;
    BUILT_IN.iter().find(|(file, _)| file.strip_suffix(".toml") == Some(name)).copied()
}

fn in_folder(folder: &Path) -> Result<Vec<Scenario>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().is_ok_and(|path| path.extension().is_some_and(|end| end == "toml")))
        .collect::<std::io::Result<_>>()?;
    if files.is_empty() {
        bail!("there is no scenario in {}; its files would end in .toml", folder.display());
    }
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(file).with_context(|| {
        format!(
            "cannot read the scenario {}; see secondwind drill --list for those that come along",
            file.display()
        )
    })?;
    Scenario::parse(&text, &file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_comes_along_and_is_called_as_its_file() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../drills"));
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let built_in_files: Vec<&str> = BUILT_IN.iter().map(|(file, _)| *file).collect();
        assert_eq!(files, built_in_files);
        for (scenario, file) in built_in().unwrap().iter().zip(files) {
            assert_eq!(format!("{}.toml", scenario.name), file);
            assert!(scenario.description.ends_with('.'), "{file}");
        }
    }

    #[test]
    fn scenarios_are_named_by_file_by_folder_or_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (_, text) = BUILT_IN[0];
        std::fs::write(folder.path().join("one.toml"), text).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "none").unwrap();
        let names = |words: &[&Path]| -> Result<Vec<String>> {
            let words: Vec<PathBuf> = words.iter().map(|word| word.to_path_buf()).collect();
            Ok(named(&words)?.into_iter().map(|scenario| scenario.name).collect())
        };
        let first = &built_in().unwrap()[0].name;
        assert_eq!(names(&[folder.path(), Path::new("kill-primary")]).unwrap(), [first, "kill-primary"]);
        assert!(names(&[Path::new("no-such")]).unwrap_err().to_string().contains("--list"));
        let empty = tempfile::tempdir().unwrap();
        assert!(names(&[empty.path()]).unwrap_err().to_string().contains(".toml"));
    }
}
