//! No file needs another that needs it: what two files share stands in a third one. Inside rooms too.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::source::{code, collect, paths, top};

/// A module's path below the crate: `["link", "pair"]`.
type Module = Vec<String>;

#[test]
fn no_file_needs_another_that_needs_it() {
    for source in ["agent/src", "protocol/src", "bench/src", "proof/src"] {
        let modules = read(&top().join(source));
        assert!(modules.len() > 5, "{source}");
        let exports = modules
            .iter()
            .map(|(name, code)| (name.clone(), exports(name, code)));
        let tree = Tree {
            exports: exports.collect(),
        };
        let needs = modules
            .iter()
            .map(|(name, code)| (name.clone(), tree.needs(name, code)));
        let left = only_circles(needs.collect());
        let shown: Vec<String> = left
            .iter()
            .map(|(name, needs)| {
                let needs: Vec<String> = needs.iter().map(|need| need.join("::")).collect();
                format!("{} needs {}", name.join("::"), needs.join(", "))
            })
            .collect();
        assert!(shown.is_empty(), "circles in {source}:\n{}", shown.join("\n"));
    }
}

#[test]
fn circles_are_seen() {
    let code = |text: &str| text.to_owned();
    let modules: BTreeMap<Module, String> = [
        (vec![], code("")),
        (
            vec!["a".into()],
            code("mod b; pub use b::Thing; use crate::c::{self, d};"),
        ),
        (
            vec!["a".into(), "b".into()],
            code("fn f() { super::super::c::f() }"),
        ),
        (vec!["c".into()], code("use crate::{x::Y, a::Thing as Other};")),
    ]
    .into();
    let exports = modules
        .iter()
        .map(|(name, code)| (name.clone(), exports(name, code)));
    let tree = Tree {
        exports: exports.collect(),
    };
    let needs = |name: &str| {
        let name: Module = name.split("::").map(str::to_owned).collect();
        tree.needs(&name, &modules[&name])
            .iter()
            .map(|n| n.join("::"))
            .collect::<Vec<_>>()
    };
    assert_eq!(needs("a"), ["c"]);
    assert_eq!(needs("a::b"), ["c"]);
    assert_eq!(needs("c"), ["a::b"], "through what `a` hands on");
    let all = modules
        .iter()
        .map(|(name, code)| (name.clone(), tree.needs(name, code)));
    let left = only_circles(all.collect());
    let left: Vec<String> = left.keys().map(|name| name.join("::")).collect();
    assert_eq!(left, ["a::b", "c"], "`a` is in no circle");
}

/// Which names a module hands on from modules in it.
struct Tree {
    exports: BTreeMap<Module, BTreeMap<String, Module>>,
}

impl Tree {
    /// The other modules that the code of `name` names.
    fn needs(&self, name: &Module, code: &str) -> BTreeSet<Module> {
        let mut code = code.to_owned();
        while let Some((begin, end)) = handed_on(&code) {
            code.replace_range(begin..end, ""); // to hand something on is not to need it
        }
        let mut needs = BTreeSet::new();
        for root in ["crate::", "super::", "self::"] {
            for (at, _) in code.match_indices(root) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue; // the middle of a path
                }
                for path in paths(&code[at..]) {
                    needs.extend(self.module(absolute(name, &path)));
                }
            }
        }
        needs.remove(name);
        needs
    }

    /// The module that has what is called so.
    fn module(&self, path: Vec<String>) -> Option<Module> {
        let known = (0..=path.len())
            .rev()
            .find(|n| self.exports.contains_key(&path[..*n]))?;
        let (module, rest) = path.split_at(known);
        let from = rest.first().and_then(|name| self.exports[module].get(name));
        match from {
            Some(from) => self.module([from.clone(), rest.to_vec()].concat()),
            None => (!module.is_empty()).then(|| module.to_vec()),
        }
    }
}

/// Without those that lead into no circle, and those that none leads to.
fn only_circles(mut needs: BTreeMap<Module, BTreeSet<Module>>) -> BTreeMap<Module, BTreeSet<Module>> {
    loop {
        let names: BTreeSet<Module> = needs.keys().cloned().collect();
        let needed: BTreeSet<Module> = needs.values().flatten().cloned().collect();
        needs
            .values_mut()
            .for_each(|need| need.retain(|n| names.contains(n)));
        needs.retain(|name, need| !need.is_empty() && needed.contains(name));
        if needs.len() == names.len() {
            return needs;
        }
    }
}

/// From the path of a `crate::`, `super::` or `self::` on to one that begins at the top.
fn absolute(module: &Module, path: &[String]) -> Vec<String> {
    let (mut base, mut path) = (module.clone(), path);
    while let Some((first, rest)) = path.split_first() {
        match first.as_str() {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        path = rest;
    }
    [base, path.to_vec()].concat()
}

/// The names that `pub use` hands on, and from where.
fn exports(module: &Module, code: &str) -> BTreeMap<String, Module> {
    let mut code = code.to_owned();
    let mut all = BTreeMap::new();
    while let Some((begin, end)) = handed_on(&code) {
        let statement = code[begin..end].trim_start_matches("pub use ").to_owned();
        for path in paths(&statement) {
            if let Some((name, from)) = absolute(module, &path).split_last() {
                all.insert(name.clone(), from.to_vec());
            }
        }
        code.replace_range(begin..end, "");
    }
    all
}

/// The next `pub use … ;`.
fn handed_on(code: &str) -> Option<(usize, usize)> {
    let begin = code.find("pub use ")?;
    let end = code[begin..].find(';')?;
    Some((begin, begin + end + 1))
}

/// Each module with its code, without tests and remarks.
fn read(source: &Path) -> BTreeMap<Module, String> {
    let mut files = Vec::new();
    collect(source, &mut files);
    let mut modules = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(source).unwrap().with_extension("");
        let mut module: Module = below
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        let is_of_tests = |part: &String| part == "tests" || part.ends_with("_tests");
        if module.iter().any(is_of_tests) || module.first().is_some_and(|first| first == "bin") {
            continue;
        }
        if module
            .last()
            .is_some_and(|last| last == "mod" || last == "lib" || last == "main")
        {
            module.pop();
        }
        modules
            .entry(module)
            .or_insert_with(String::new)
            .push_str(&code(&file));
    }
    modules
}
