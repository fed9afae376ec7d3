//! Programs that a script runs, and the scripts of other shells.

use super::*;

/// Characters of a file's name in the place of its script: each run of etcd keeps one.
const MAX_NAME: usize = 60;

impl Shell<'_> {
    /// Follows a program and its words; `place` tells where each of the words stands.
    pub(in crate::injection::options) fn program(
        &mut self,
        words: &[Text],
        own: &[(String, Vec<Option<Text>>)],
        place: &dyn Fn(usize) -> String,
    ) -> Followed {
        let outer = (self.cleared.clone(), self.dropped.clone());
        let input = self.input.take();
        let mut own = own.to_vec();
        let mut at = 0;
        loop {
            let words = &words[at..];
            let name = words.first().map(Text::shown).unwrap_or_default();
            self.pay(16 + words.iter().map(Text::cost).sum::<usize>())?;
            if self.written.contains(programs::basename(&name)) {
                let script = if name.contains('/') { self.file(&name)? } else { None };
                let Some(script) = script else {
                    return self.doubt(format!("runs {name}, a file of a name that it writes itself"));
                };
                self.child(&script, within(&place(at), &name), words.to_vec(), &own)?;
                break;
            }
            self.written.extend(programs::writes(words));
            let mut pass = |shell: &mut Self, passed: Passed| {
                own.extend(passed.unsets.into_iter().map(|name| (name, vec![None])));
                own.extend(passed.sets.into_iter().map(|(name, text)| (name, vec![Some(text)])));
                shell.cleared = shell.cleared.take().or_else(|| passed.clears.then(|| name.clone()));
                shell.dropped = shell.dropped.take().or_else(|| passed.drops_groups.then(|| name.clone()));
            };
            let step = programs::step(words);
            match step {
                Step::Harmless | Step::Unknown(..) | Step::Tool(Tool::Etcdctl | Tool::Etcdutl) => {
                    self.passes(words, &step);
                }
                _ => {}
            }
            match step {
                Step::Harmless => self.ran(words),
                Step::Image => {
                    self.runs.push(Run { image: true, ..Run::default() });
                    self.started();
                }
                Step::Tool(tool) => {
                    self.tool(tool, &words[1..], &own, &place(at));
                    self.ran_tool(&words[1..]);
                }
                Step::File(file, why) => {
                    let name = words[file].as_str().map(str::to_owned);
                    match name.map(|name| self.file(&name)).transpose()?.flatten() {
                        Some(script) => {
                            let place = within(&place(at), &words[file].shown());
                            self.child(&script, place, words[file..].to_vec(), &own)?;
                        }
                        None => {
                            self.passes(words, &Step::Unknown(String::new(), true));
                            self.note(Tool::Etcd, &why, &place(at));
                            self.note(Tool::Etcdctl, &why, &place(at));
                        }
                    }
                }
                Step::Wrapper(next, passed) => {
                    pass(self, passed);
                    at += next;
                    continue;
                }
                Step::Stdin(name, passed) => {
                    pass(self, passed);
                    let Some(script) = &input else {
                        self.passes(words, &Step::Unknown(String::new(), true));
                        let why = format!("starts {name} without a script, so its input is not known");
                        self.note(Tool::Etcd, &why, &place(at));
                        self.note(Tool::Etcdctl, &why, &place(at));
                        break;
                    };
                    let outer = std::mem::replace(&mut self.read_from, true);
                    self.child(script, format!("{}, input", place(at)), vec![Text::known(&name)], &own)?;
                    self.read_from = outer;
                }
                Step::Shell(script, zero, passed) => {
                    pass(self, passed);
                    self.errexit |= words[1..script]
                        .iter()
                        .any(|word| word.prefix().starts_with('-') && word.shown().contains('e'));
                    let arguments = words.get(zero..).filter(|rest| !rest.is_empty()).unwrap_or(&words[..1]).to_vec();
                    self.child(&words[script], place(at + script), arguments, &own)?;
                }
                Step::Unknown(why, script) => {
                    self.files.clear();
                    self.members.clear();
                    self.note(Tool::Etcd, &why, &place(at));
                    if script {
                        self.note(Tool::Etcdctl, &why, &place(at));
                    }
                }
            }
            break;
        }
        (self.cleared, self.dropped) = outer;
        Ok(())
    }

    /// A script of a shell of its own, which has the exported variables and no functions. `arguments`: `$0` and those behind it.
    fn child(
        &mut self,
        script: &Text,
        place: String,
        mut arguments: Vec<Text>,
        own: &[(String, Vec<Option<Text>>)],
    ) -> Followed {
        let sets = |name| self.environment.by_name.contains_key(name) || self.variables.contains_key(name);
        if sets("BASH_ENV") || sets("SHELLOPTS") {
            return self.doubt("sets BASH_ENV or SHELLOPTS, which bash reads first");
        }
        self.depth += 1;
        let variables = self.variables.clone();
        let exported = self.exported.clone();
        let functions = std::mem::take(&mut self.functions);
        let behind = arguments.split_off(arguments.len().min(1));
        let passed = BTreeMap::from([("0".to_owned(), vec![arguments]), ("@".to_owned(), vec![behind])]);
        let lists = std::mem::replace(&mut self.lists, passed);
        // What it assigns is its own.
        let (branch, assignments) = (self.branch, self.assignments);
        self.branch |= self.perhaps > 0;
        let outer = (self.perhaps, self.left_early, self.process, self.turn, self.function.take());
        (self.perhaps, self.left_early, self.process, self.turn) = (0, 0, 0, None);
        let (level, allexport) = (self.around.level.take(), std::mem::take(&mut self.allexport));
        for (name, texts) in &mut self.variables {
            let passed = self.exported.contains(name) || self.environment.by_name.contains_key(name);
            // An array is never passed on.
            if !passed || lists.contains_key(name) {
                *texts = vec![Some(Text::hole(format!("${{{name}}}"), Kind::Any))];
            }
        }
        self.variables.remove("IFS");
        for (name, texts) in own {
            self.variables.insert(name.clone(), texts.clone());
            self.exported.insert(name.clone());
        }
        self.pay(variables.values().flatten().flatten().map(Text::cost).sum())?;
        self.follow(script, place)?;
        (self.variables, self.exported, self.functions) = (variables, exported, functions);
        self.lists = lists;
        (self.perhaps, self.left_early, self.process, self.turn, self.function) = outer;
        (self.around.level, self.allexport) = (level, allexport);
        (self.branch, self.assignments) = (branch, assignments);
        self.depth -= 1;
        Ok(())
    }

    /// A run of etcd or etcdctl.
    pub(in crate::injection::options) fn tool(
        &mut self,
        tool: Tool,
        words: &[Text],
        own: &[(String, Vec<Option<Text>>)],
        place: &str,
    ) {
        let mut run = Run::read(tool, words, place.to_owned());
        if run.asks {
            return;
        }
        if let Some(why) = run.doubt.take() {
            self.note(tool, &why, place);
        }
        if let Some(by) = self.cleared.clone() {
            self.note(tool, &format!("runs {by}, {CLEARS}"), place);
        }
        run.dropped.clone_from(&self.dropped);
        for (name, texts) in self.variables.iter().chain(own.iter().map(|(n, t)| (n, t))) {
            let exported = self.exported.contains(name)
                || self.environment.by_name.contains_key(name)
                || own.iter().any(|(n, _)| n == name);
            let kept = match texts.as_slice() {
                _ if !name.starts_with("ETCD") => continue,
                _ if self.tainted.contains(name) => Kept::Unclear,
                [Some(text)] if exported => Kept::Set(text.shown()),
                [Some(_)] => Kept::Unexported,
                [None] => Kept::Unset,
                _ => Kept::Unclear,
            };
            run.variables.insert(name.clone(), kept);
        }
        self.runs.push(run);
        if tool == Tool::Etcd {
            self.started();
        }
    }
}

/// The place of a file's script: its name, of which people read the beginning.
pub(super) fn within(place: &str, file: &str) -> String {
    let name: String = file.chars().take(MAX_NAME).collect();
    format!("{place}, {name}")
}
