//! The source as text, for the tests that hold its structure.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The project's folder.
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files at `path` or below it.
pub fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), files);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        files.push(path.to_owned());
    }
}

/// What a file says without its tests and remarks.
pub fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("mod tests {").next().unwrap_or_default();
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// All paths of a tree such as `a::{b, c::{self, D}}`, up to where it ends.
pub fn paths(text: &str) -> Vec<Vec<String>> {
    let mut rest = text;
    tree(&mut rest)
}

fn tree(text: &mut &str) -> Vec<Vec<String>> {
    let mut path = Vec::new();
    loop {
        *text = text.trim_start();
        if let Some(inside) = text.strip_prefix('{') {
            *text = inside;
            let mut all = Vec::new();
            loop {
                *text = text.trim_start_matches([',', ' ', '\n']);
                if let Some(after) = text.strip_prefix('}') {
                    *text = after;
                    return all;
                }
                if text.is_empty() {
                    return all;
                }
                let before = text.len();
                all.extend(tree(text).into_iter().map(|sub| [path.clone(), sub].concat()));
                // `as name`, `*`
                *text = text.trim_start_matches(|c| !matches!(c, ',' | '}'));
                assert!(text.len() < before, "{text}");
            }
        }
        let end = text
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        if end == 0 {
            return vec![path];
        }
        path.push(text[..end].to_owned());
        *text = &text[end..];
        match text.strip_prefix("::") {
            Some(after) => *text = after,
            None => return vec![path],
        }
    }
}
