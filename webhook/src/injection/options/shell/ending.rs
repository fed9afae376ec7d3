//! What becomes of a container when the etcd in it ends, by what its script does behind it. The script is read in its order: a
//! branch counts as if it were taken, and what only perhaps goes on is not known.

use super::*;

/// How far a script is with its runs of etcd.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// There is a run that the container's main process outlives, or waits for.
    seen: bool,
    /// That run is in the background, or the script has ended it itself.
    background: bool,
    killed: bool,
    /// A loop starts it again.
    restarted: bool,
    /// Behind it, the script may leave by itself.
    exits: bool,
    after: After,
    /// Of the runs before it.
    worst: After,
    /// Of other commands in the background.
    beside: Fate,
}

/// The loop that is being followed.
#[derive(Clone, Copy, Default)]
pub(super) struct Around {
    /// How uncertain a command is that each turn runs; `None` outside of a loop, and in a shell of its own.
    pub(super) level: Option<usize>,
    /// Each turn runs etcd.
    starts: bool,
}

/// How often a loop is run.
#[derive(Clone, Copy)]
pub(super) enum Turns {
    /// Once for each of its words, or lines of etcd's output.
    Counted,
    Unknown,
    Endless,
}

/// Where a loop began.
pub(super) struct Begun {
    run: usize,
    leaves: usize,
    ending: Ending,
    around: Around,
}

/// Characters of a command in a reason.
const MAX_SHOWN: usize = 60;
/// How `$!` is shown where it is another program than etcd.
const OTHER_JOB: &str = "${!}…";
/// Signals that do not come because etcd ends.
const SIGNALS: &str = "TERM INT HUP QUIT USR1 USR2 PIPE 1 2 3 10 12 13 15";

impl Shell<'_> {
    /// etcd is started.
    pub(super) fn started(&mut self) {
        self.around.starts |= self.around.level == Some(self.perhaps);
        let before = self.ending.seen && !self.ending.killed;
        if before {
            if self.ending.background {
                self.comes(Fate::Unknown, || "another etcd".to_owned());
            }
            let after = std::mem::take(&mut self.ending.after);
            self.ending.worst = std::mem::take(&mut self.ending.worst).or(after);
        }
        // In place of the container's main process nothing outlives it.
        let worst = std::mem::take(&mut self.ending.worst);
        self.ending = Ending { seen: before || !self.main, worst, beside: self.ending.beside, ..Ending::default() };
    }

    /// Whether etcd was among the runs from `first` on.
    pub(super) fn is_run(&self, first: usize) -> bool {
        self.runs[first..].iter().any(|run| run.image || run.tool == Some(Tool::Etcd))
    }

    /// A program that is not followed further.
    pub(super) fn passes(&mut self, words: &[Text], step: &Step) {
        let Some(name) = words.first().map(|word| programs::basename(&word.shown()).to_owned()) else { return };
        let arguments: Vec<String> = words[1..].iter().map(Text::shown).collect();
        let running = self.ending.seen && self.ending.background && !self.ending.killed;
        let kills = || {
            let harmless = ["-0", "-l", "-L", "-HUP", "-1", "-USR1", "-USR2"];
            matches!(name.as_str(), "kill" | "pkill" | "killall")
                && arguments.first().is_none_or(|first| !harmless.contains(&first.as_str()))
        };
        let fate = match (step, name.as_str()) {
            (_, "exit") => {
                self.leaves += 1;
                self.ending.exits = true;
                let code = arguments.first().map(String::as_str);
                let fails = code.is_none_or(|code| code == "${?}" || code.parse::<u8>().is_ok_and(|code| code > 0));
                if fails { Fate::Ends } else { Fate::EndsWell }
            }
            (_, "wait") if self.ending.seen => return self.waits(&arguments),
            _ if running && kills() => {
                self.leaves += 1;
                (self.ending.killed, self.ending.exits) = (true, true);
                Fate::Unknown
            }
            (Step::Harmless | Step::Tool(_), _) => fate::lasts(&name, &arguments, self.piped),
            _ => Fate::Unknown,
        };
        // What is over soon says nothing of an etcd in the background.
        if fate > Fate::EndsWell || !self.ending.background {
            self.comes(fate, || {
                let words: Vec<String> = std::iter::once(name).chain(arguments).collect();
                words.join(" ").chars().take(MAX_SHOWN).collect()
            });
        }
    }

    /// Something comes behind etcd, which `what` names.
    fn comes(&mut self, fate: Fate, what: impl FnOnce() -> String) {
        if self.parsing {
            return;
        }
        let perhaps = self.perhaps > 0 || self.branch || self.ending.exits || self.errexit;
        let fate = if perhaps { fate.min(Fate::Unknown) } else { fate };
        self.listed = self.listed.max(fate);
        if fate > self.ending.after.fate {
            self.ending.after = After { fate, why: format!("{}: {}", self.place(), what()) };
        }
    }

    fn waits(&mut self, arguments: &[String]) {
        let Ending { background, beside, .. } = self.ending;
        let fate = match arguments {
            [] => beside.max(Fate::EndsWell),
            [next] if next == "-n" && background => Fate::Ends,
            _ if arguments.iter().all(|job| job == "${!}") => Fate::Ends,
            _ => beside.clamp(Fate::EndsWell, Fate::Unknown),
        };
        // The shell may never come to it.
        if background && self.ending.after.fate < Fate::Unknown {
            self.ending.after = After::default();
        }
        self.comes(fate, || "wait".to_owned());
        self.ending.background = false;
    }

    /// A list that ends with `&`, which began with `before` and the run `first`.
    pub(super) fn in_background(&mut self, first: usize, before: Ending) {
        if self.parsing {
            return;
        }
        self.job = self.is_run(first);
        if !self.job {
            let beside = before.beside.max(self.listed);
            self.ending = Ending { beside, ..before };
        } else if !self.ending.restarted {
            let Ending { worst, after, .. } = std::mem::take(&mut self.ending);
            let after = if after.fate < Fate::Unknown { After::default() } else { after };
            self.ending =
                Ending { seen: true, background: true, worst, after, beside: before.beside, ..Ending::default() };
        }
    }

    /// The commands of a pipeline: those since `first`, whose output another one reads, and since `last` that one. A shell waits for
    /// all of them. `fed`: the fate by the former.
    pub(super) fn in_pipeline(&mut self, first: usize, last: usize, fed: Fate) {
        if self.is_run(first) && !self.ending.restarted {
            self.ending.seen = true;
            let fate = if self.is_run(last) { fed } else { Fate::EndsWell };
            self.comes(fate, || "a pipeline".to_owned());
        }
    }

    /// How often the loop is run whose condition is in front of it, of `while` or `until`.
    pub(super) fn turns(&self, word: &str) -> Turns {
        let rest: String =
            self.script.chars.get(self.script.at..).unwrap_or_default().iter().take(2 * MAX_SHOWN).collect();
        let Some((condition, body)) = rest.split_once([';', '\n']) else { return Turns::Unknown };
        let condition = condition.trim();
        if !body.trim_start().starts_with("do") || condition.contains(['&', '|']) {
            return Turns::Unknown;
        }
        let always = ["true", ":", "/bin/true", "[ 1 ]", "((1))", "(( 1 ))"].contains(&condition);
        match word {
            "until" if condition == "false" => Turns::Endless,
            "while" if always || condition.starts_with("sleep ") => Turns::Endless,
            "while" if self.piped && condition.split(' ').any(|word| word == "read") => Turns::Counted,
            _ => Turns::Unknown,
        }
    }

    /// Begins to follow a loop.
    pub(super) fn begins(&mut self) -> Begun {
        let around = Around { level: Some(self.perhaps + 1), starts: false };
        let around = std::mem::replace(&mut self.around, around);
        Begun { run: self.runs.len(), leaves: self.leaves, ending: self.ending.clone(), around }
    }

    /// A loop was followed; `turns`: how often it is run.
    pub(super) fn looped(&mut self, turns: Turns, begun: Begun) {
        let Begun { run, leaves, ending: before, around } = begun;
        let starts = std::mem::replace(&mut self.around, around).starts;
        let (is_run, left) = (self.is_run(run), self.leaves > leaves);
        let worst = self.ending.worst.fate.max(self.ending.after.fate);
        match turns {
            Turns::Counted => {}
            // The next turn starts it, or there is none.
            Turns::Unknown | Turns::Endless if is_run && starts && worst <= Fate::EndsWell => {
                // With `set -e` the shell of the loop may end with etcd.
                if left || self.errexit || matches!(turns, Turns::Unknown) {
                    return;
                }
                let beside = before.seen && !before.killed;
                self.ending = Ending { restarted: true, ..before };
                if beside {
                    self.comes(Fate::GoesOn, || "a loop".to_owned());
                }
            }
            Turns::Endless if !is_run && !left => self.comes(Fate::GoesOn, || "a loop".to_owned()),
            _ => self.comes(Fate::Unknown, || "a loop".to_owned()),
        }
    }

    /// A handler of signals: one that may run because etcd ends, or when the shell does, is not known.
    pub(super) fn handles(&mut self, signals: &[Text]) {
        let known =
            |word: &Text| word.as_str().is_some_and(|name| programs::has(SIGNALS, name.trim_start_matches("SIG")));
        if !signals.iter().all(known) {
            self.at_exit = Some(format!("{}: trap", self.place()));
        }
    }

    /// What becomes of the container by all that was followed.
    pub(in crate::injection::options) fn after(&self) -> After {
        let Ending { seen, worst, after, .. } = self.ending.clone();
        if !seen {
            return worst;
        }
        // A handler that is given for the shell's end runs behind all of it.
        let handler = self.at_exit.clone().map(|why| After { fate: Fate::Unknown, why }).unwrap_or_default();
        worst.or(after).or(handler)
    }

    /// How `$!` is shown.
    pub(super) fn last_job(&self) -> &'static str {
        if self.job { "${!}" } else { OTHER_JOB }
    }
}
