//! Every config in `tests/bad-configs` is refused at the line it names, with cause and hint. Its first line says what
//! has to come: `# expect: LINE: part of the message | part of the hint`.

use std::{fs, path::Path};

use crate::harness::{Agent, settings::Settings};

#[test]
fn bad_configs_are_refused_with_line_cause_and_hint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bad-configs");
    let agent = Agent::new("reader", Settings::default());
    let mut wrong = Vec::new();
    let mut cases = 0;
    for entry in fs::read_dir(&folder).expect("tests/bad-configs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        cases += 1;
        let text = fs::read_to_string(&path).expect("a config");
        let (line, message, hint) =
            expectation(&text).unwrap_or_else(|| panic!("no `# expect:` in {}", path.display()));
        fs::copy(&path, &agent.config).expect("in place");
        let ran = agent.run(&["check"]);
        let said = ran.err();
        let points = said.contains(&format!(":{line}:"))
            || said
                .lines()
                .any(|l| l.trim_start().starts_with(&format!("{line} ")));
        if ran.code != Some(78) || !points || !said.contains(message) || !said.contains(hint) {
            wrong.push(format!(
                "{}: want line {line}, `{message}`, `{hint}`\n{ran}",
                path.display()
            ));
        }
    }
    assert!(cases > 0, "no case in {}", folder.display());
    assert!(
        wrong.is_empty(),
        "{} of {cases}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn expectation(text: &str) -> Option<(u32, &str, &str)> {
    let (line, rest) = text
        .lines()
        .next()?
        .strip_prefix("# expect:")?
        .trim()
        .split_once(':')?;
    let (message, hint) = rest.split_once('|').unwrap_or((rest, ""));
    Some((line.trim().parse().ok()?, message.trim(), hint.trim()))
}
