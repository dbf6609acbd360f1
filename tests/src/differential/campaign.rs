//! Many programs, of many classes, on all processors.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::classes::Class;
use super::compare::{Verdict, compare};
use super::coverage::Coverage;
use super::oracle::{Oracle, OracleError};
use super::program::{Program, Recipe};

/// What a program is taken to execute as long as it runs.
const TYPICAL_PROGRAM_INSTRUCTIONS: u64 = 300_000;
/// Differences after which a class is left alone.
const MAX_REPORTS: usize = 3;

/// What to run.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// These classes, in turn.
    pub classes: Vec<Class>,
    /// Seeds from this one on, the same for each class.
    pub first_seed: u64,
    /// Until each class has executed this many generated instructions; `None`: until stopped.
    pub instructions_per_class: Option<u64>,
    /// Threads.
    pub workers: usize,
}

/// What programs of a class came to.
#[derive(Debug, Clone, Default)]
pub struct ClassResult {
    /// Programs that ran.
    pub programs: u64,
    /// Generated instructions that they executed, on both machines alike.
    pub instructions: u64,
    /// What differed: one report per program.
    pub reports: Vec<String>,
    running: u64,
}

/// What a campaign came to.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// By name of the class.
    pub classes: BTreeMap<&'static str, ClassResult>,
    /// What was executed, of all classes.
    pub coverage: Coverage,
}

impl Results {
    /// Generated instructions that were executed and compared.
    pub fn instructions(&self) -> u64 {
        self.classes.values().map(|class| class.instructions).sum()
    }

    /// Programs that ran.
    pub fn programs(&self) -> u64 {
        self.classes.values().map(|class| class.programs).sum()
    }

    /// All reports of differences.
    pub fn reports(&self) -> impl Iterator<Item = &str> {
        self.classes.values().flat_map(|class| class.reports.iter().map(String::as_str))
    }

    /// One line per class.
    pub fn table(&self) -> String {
        let line = |(name, class): (&&str, &ClassResult)| {
            let ClassResult { programs, instructions, reports, .. } = class;
            format!(
                "{name:<15} {instructions:>12} instructions {programs:>6} programs {} differences\n",
                reports.len()
            )
        };
        self.classes.iter().map(line).collect()
    }
}

impl Campaign {
    /// Runs it, until done or until `stop` is set. `progress` is called after each program.
    ///
    /// # Errors
    /// When QEMU cannot be run. That something differs is no error.
    ///
    /// # Panics
    /// When the generator has a defect.
    pub fn run(
        &self,
        oracle: &Oracle,
        stop: &AtomicBool,
        progress: impl Fn(&Results) + Sync,
    ) -> Result<Results, OracleError> {
        let state = Mutex::new((Results::default(), None));
        std::thread::scope(|scope| {
            for _ in 0..self.workers.max(1) {
                scope.spawn(|| self.work(oracle, stop, &state, &progress));
            }
        });
        match state.into_inner().expect("no worker panics") {
            (results, None) => Ok(results),
            (_, Some(error)) => Err(error),
        }
    }

    fn work(
        &self,
        oracle: &Oracle,
        stop: &AtomicBool,
        state: &Mutex<(Results, Option<OracleError>)>,
        progress: &(impl Fn(&Results) + Sync),
    ) {
        while !stop.load(Ordering::Relaxed) {
            let recipe = {
                let (results, error) = &mut *state.lock().expect("no worker panics");
                if error.is_some() {
                    return;
                }
                let Some(recipe) = self.next_recipe(results) else { return };
                recipe
            };
            let verdict = compare(oracle, &Program::generate(recipe));
            // What stops us stops QEMU too.
            if verdict.is_err() && stop.load(Ordering::Relaxed) {
                return;
            }
            let (results, error) = &mut *state.lock().expect("no worker panics");
            let class = results.classes.entry(recipe.class.name()).or_default();
            class.running -= 1;
            match verdict {
                Ok(Verdict::Same(coverage)) => {
                    class.instructions += coverage.generated;
                    results.coverage.add(&coverage);
                }
                Ok(Verdict::Different(report)) => class.reports.push(report),
                Err(failed) => *error = Some(failed),
            }
            progress(results);
        }
    }

    /// The next program: of the class that has executed least. `None` when all have executed
    /// enough, or will have with what is running.
    fn next_recipe(&self, results: &mut Results) -> Option<Recipe> {
        let mut least = None;
        for class in &self.classes {
            let result = results.classes.entry(class.name()).or_default();
            let expected = result.instructions + result.running * TYPICAL_PROGRAM_INSTRUCTIONS;
            let is_done = self.instructions_per_class.is_some_and(|wanted| expected >= wanted);
            if is_done || result.reports.len() >= MAX_REPORTS {
                continue;
            }
            if least.is_none_or(|(_, executed)| expected < executed) {
                least = Some((*class, expected));
            }
        }
        let (class, _) = least?;
        let result = results.classes.entry(class.name()).or_default();
        let seed = self.first_seed.wrapping_add(result.programs);
        result.programs += 1;
        result.running += 1;
        Some(Recipe { class, seed })
    }
}
