//! Rules of the source that the compiler does not check: which room of `src/` may use which, and where `unsafe` may stand.
//! Reads the files, so that it holds whatever features are on.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `src/`, top first. Each uses only those on the floors below its own; `error` is for all.
const FLOORS: [&[&str]; 10] = [
    &["py"],
    &["supervisor", "broker"],
    &["enhanced_api"],
    &["sampler", "tracing", "options", "emulation", "capture"],
    &["connection"],
    &["namespace"],
    &["events"],
    &["netlink"],
    &["sys"],
    &["abi"],
];

/// Rooms that use less than their floor would let them.
const NARROWER: [(&str, &[&str]); 2] = [("emulation", &["sys"]), ("capture", &["abi"])];

/// Where `unsafe` stands outside `sys/`, and how often.
const UNSAFE: [(&str, usize); 1] = [("py/rows.rs", 2)];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn may_use(room: &str, other: &str) -> bool {
    if other == room || other == "error" {
        return true;
    }
    if let Some((_, rooms)) = NARROWER.iter().find(|(narrow, _)| *narrow == room) {
        return rooms.contains(&other);
    }
    matches!((floor(room), floor(other)), (Some(own), Some(other)) if own < other)
}

/// Code without its comments.
fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The rooms that a file names after `crate::`, alone or in braces.
fn rooms_used(source: &str) -> Vec<String> {
    let code = without_comments(source);
    let mut rooms = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push(identifier(rest).to_owned());
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    rooms.push(identifier(group[start..at].trim_start()).to_owned());
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

/// What a file of a room uses and must not.
fn faults(room: &str, source: &str) -> Vec<String> {
    rooms_used(source).into_iter().filter(|other| !may_use(room, other)).collect()
}

/// `unsafe` blocks, functions and implementations.
fn unsafe_uses(source: &str) -> usize {
    let code = without_comments(source);
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| *word == "unsafe").count()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file below `src/`: its path from there, and its text.
fn files() -> Vec<(String, String)> {
    let (mut folders, mut files) = (vec![src()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(src()).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

#[test]
fn each_room_uses_only_rooms_below_it() {
    let mut found = Vec::new();
    for (name, source) in files() {
        let Some((room, _)) = name.split_once('/') else { continue };
        assert!(floor(room).is_some(), "src/{room} has no floor: give it one in FLOORS");
        found
            .extend(faults(room, &source).into_iter().map(|other| format!("src/{name} uses crate::{other}")));
    }
    assert!(found.is_empty(), "arrows that do not point down:\n{}", found.join("\n"));
}

#[test]
fn only_lib_and_error_stand_outside_the_rooms() {
    let mut outside: Vec<_> =
        files().into_iter().map(|(name, _)| name).filter(|name| !name.contains('/')).collect();
    outside.sort_unstable();
    assert_eq!(outside, ["error.rs", "lib.rs"]);
    let error = fs::read_to_string(src().join("error.rs")).unwrap();
    assert_eq!(rooms_used(&error), Vec::<String>::new(), "error is for all rooms and uses none");
}

#[test]
fn unsafe_stands_in_sys_and_at_one_named_exception() {
    let uses = |(name, source): (String, String)| (name, unsafe_uses(&source));
    let outside: Vec<_> = files()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("sys/"))
        .map(uses)
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(outside, UNSAFE.map(|(name, count)| (name.to_owned(), count)));
}

#[test]
fn no_room_is_a_cupboard_for_all() {
    const MOST_LINES: usize = 2500;
    // Unit tests, which stand last in a file, are of the subject that they test.
    let without_tests = |source: String| source.lines().take_while(|line| *line != "#[cfg(test)]").count();
    for room in FLOORS.iter().copied().flatten() {
        let of_room = files().into_iter().filter(|(name, _)| name.starts_with(&format!("{room}/")));
        let lines: usize = of_room.map(|(_, source)| without_tests(source)).sum();
        assert!(
            lines <= MOST_LINES,
            "src/{room} has {lines} lines without tests: it may be more than one subject"
        );
    }
}

#[test]
fn the_checker_finds_an_arrow_up() {
    assert_eq!(faults("events", "use crate::namespace::Namespace;"), ["namespace"]);
    assert_eq!(
        faults("events", "use crate::{error::Result, sys, connection::{Which, open}};"),
        ["connection"]
    );
    assert_eq!(faults("sys", "fn f() -> crate::netlink::Failure { todo!() }"), ["netlink"]);
    assert_eq!(faults("sampler", "use crate::options::table;"), ["options"], "on the same floor");
    assert_eq!(faults("emulation", "use crate::netlink::Channel;"), ["netlink"]);
    assert_eq!(faults("abi", "macro_rules! m { () => { $crate::py::f() }; }"), ["py"]);
    assert_eq!(faults("connection", "use crate::no_such_room;"), ["no_such_room"]);
}

#[test]
fn the_checker_lets_what_is_right_pass() {
    let source = "/// See [`crate::py`].\nuse crate::error::Error; // not crate::connection\nuse crate::{abi::{bytes, uapi}, sys};";
    assert_eq!(rooms_used(source), ["error", "abi", "sys"]);
    assert_eq!(faults("netlink", source), Vec::<String>::new());
    assert_eq!(unsafe_uses("#![deny(unsafe_code)]\n// unsafe\nunsafe fn f() { unsafe { g() } }"), 2);
}
