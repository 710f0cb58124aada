//! Rules of the source that the compiler does not check: which room of `src/` may use which, and where `unsafe` may stand.
//! Reads the files, so that it holds whatever features are on.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `src/`, top first. Each uses only those on the floors below its own; `error` is for all.
const FLOORS: [&[&str]; 10] = [
    &["py"],
    &["supervisor", "broker"],
    &["enhanced_api"],
    &["sampler", "tracing", "options", "watcher", "emulation"],
    &["connection", "tcp_sock", "endings", "samples", "traces"],
    &["namespace"],
    &["events"],
    &["netlink", "bpf", "capture", "crew"],
    &["sys"],
    &["abi"],
];

/// Rooms that use less than their floor would let them.
const NARROWER: [(&str, &[&str]); 6] = [
    ("samples", &["sys", "abi"]),
    ("emulation", &["sys"]),
    ("traces", &["capture"]),
    ("capture", &["abi"]),
    ("crew", &["sys"]),
    ("tcp_sock", &["bpf", "sys", "abi"]),
];

/// Where `unsafe` stands outside `sys/`, and how often.
const UNSAFE: [(&str, usize); 1] = [("py/rows.rs", 3)];

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

/// Code without its comments, and without what is between quotes.
fn code_of(source: &str) -> String {
    let (mut code, mut rest) = (String::new(), source);
    while let Some(first) = rest.chars().next() {
        let hashes = rest.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
        let is_raw = hashes.is_some_and(|hashes| rest[1 + hashes..].starts_with('"'));
        let is_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if is_raw && !is_word {
            let start = 2 + hashes.unwrap();
            let end = format!("\"{}", "#".repeat(start - 2));
            rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
        } else if first == '"' {
            1 + end_of_quoted(&rest[1..], '"')
        } else if first == '\'' && is_character(rest) {
            1 + end_of_quoted(&rest[1..], '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// Where the text behind an opening quote goes on behind the closing one.
fn end_of_quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        if c == quote && !is_escaped {
            return at + c.len_utf8();
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

/// A character, not a lifetime.
fn is_character(text: &str) -> bool {
    let mut inside = text.chars().skip(1);
    match inside.next() {
        Some('\\') => true,
        Some(_) => inside.next() == Some('\''),
        None => false,
    }
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The paths that a tree of `use`, or a path in code, stands for, and what is behind it: `a::{b, c::d}` is a::b and
/// a::c::d.
fn expand<'a>(mut rest: &'a str, before: &[&'a str], paths: &mut Vec<Vec<&'a str>>) -> &'a str {
    let mut path = before.to_vec();
    loop {
        if let Some(mut inside) = rest.strip_prefix('{') {
            loop {
                inside = inside.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                if let Some(behind) = inside.strip_prefix('}') {
                    return behind;
                }
                let behind = expand(inside, &path, paths);
                // The name after `as`, or what is no tree at all.
                let next = behind.find([',', '}']).unwrap_or(behind.len());
                if next == behind.len() {
                    return "";
                }
                inside = &behind[next..];
            }
        }
        let name = identifier(rest);
        path.push(name);
        rest = &rest[name.len()..];
        match rest.strip_prefix("::") {
            Some(behind) if !name.is_empty() => rest = behind.trim_start(),
            _ => {
                paths.push(path);
                return rest;
            }
        }
    }
}

/// How deep the module of a file is: 0 is lib.rs, 1 a room's mod.rs.
fn depth_of(name: &str) -> usize {
    let folders = name.matches('/').count();
    if name.ends_with("mod.rs") || !name.contains('/') {
        folders
    } else {
        folders + 1
    }
}

/// The rooms that a file names by paths from the crate's root, `crate::` or as many `super::` as lead there.
fn rooms_used(name: &str, source: &str) -> Vec<String> {
    let code = code_of(source);
    let mut rooms = Vec::new();
    // The brace depths at which inline modules began.
    let (mut modules, mut braces) = (Vec::new(), 0);
    let (mut rest, mut last) = (code.as_str(), ["", ""]);
    while let Some(first) = rest.chars().next() {
        let word = identifier(rest);
        if word.is_empty() {
            match first {
                '{' => {
                    braces += 1;
                    if last[0] == "mod" {
                        modules.push(braces);
                    }
                }
                '}' => {
                    modules.retain(|begun| *begun != braces);
                    braces -= 1;
                }
                _ => {}
            }
            if !first.is_whitespace() {
                last = ["", ""];
            }
            rest = &rest[first.len_utf8()..];
            continue;
        }
        if !["crate", "self", "super"].contains(&word) || !rest[word.len()..].starts_with("::") {
            last = [last[1], word];
            rest = &rest[word.len()..];
            continue;
        }
        let mut paths = Vec::new();
        rest = expand(rest, &[], &mut paths);
        last = ["", ""];
        for path in paths {
            let mut depth = depth_of(name) + modules.len();
            for segment in path {
                match segment {
                    "crate" => depth = 0,
                    "self" => {}
                    "super" => depth = depth.saturating_sub(1),
                    "" => break,
                    room => {
                        if depth == 0 && !rooms.iter().any(|known| known == room) {
                            rooms.push(room.to_owned());
                        }
                        break;
                    }
                }
            }
        }
    }
    rooms
}

/// What a file uses and must not.
fn faults(name: &str, source: &str) -> Vec<String> {
    let room = name.split('/').next().unwrap_or_default();
    rooms_used(name, source).into_iter().filter(|other| !may_use(room, other)).collect()
}

/// `unsafe` blocks, functions and implementations.
fn unsafe_uses(source: &str) -> usize {
    let code = code_of(source);
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
        found.extend(
            faults(&name, &source).into_iter().map(|other| format!("src/{name} uses crate::{other}")),
        );
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
    assert_eq!(rooms_used("error.rs", &error), Vec::<String>::new(), "error is for all rooms and uses none");
}

#[test]
fn every_room_has_a_line_in_the_map() {
    let pages = fs::read_to_string(src().join("../CONTRIBUTING.md")).unwrap();
    let mut missing: Vec<_> = files()
        .into_iter()
        .filter_map(|(name, _)| Some(name.split_once('/')?.0.to_owned()))
        .filter(|room| !pages.lines().any(|line| line.starts_with(&format!("  {room}/ "))))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    assert!(missing.is_empty(), "rooms without a line in CONTRIBUTING.md's map: {missing:?}");
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
    let most = |room: &str| match room {
        // The binding has one file for each Python type, so it grows with the package's interface.
        "py" => 3600,
        // All that is unsafe, whatever it is for.
        "sys" => 3000,
        _ => 2500,
    };
    // Unit tests, which stand last in a file, are of the subject that they test.
    let without_tests = |source: String| source.lines().take_while(|line| *line != "#[cfg(test)]").count();
    for room in FLOORS.iter().copied().flatten() {
        let of_room = files().into_iter().filter(|(name, _)| name.starts_with(&format!("{room}/")));
        let lines: usize = of_room.map(|(_, source)| without_tests(source)).sum();
        assert!(
            lines <= most(room),
            "src/{room} has {lines} lines without tests: it may be more than one subject"
        );
    }
}

#[test]
fn no_codec_does_io() {
    // A codec uses nothing that has a descriptor, a socket or a system call.
    let io = ["Channel", "sys", "socket2", "File", "Namespace"];
    let mut found = Vec::new();
    for (name, source) in files().into_iter().filter(|(name, _)| name.ends_with("/codec.rs")) {
        let code = code_of(&source);
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(word) = words.find(|word| io.contains(word)) {
            found.push(format!("src/{name} names {word}"));
        }
    }
    assert!(found.is_empty(), "codecs that do I/O:\n{}", found.join("\n"));
}

#[test]
fn the_checker_finds_an_arrow_up() {
    let in_file = |name, source| faults(name, source).join(" ");
    assert_eq!(in_file("events/reader.rs", "use crate::namespace::Namespace;"), "namespace");
    let group = "use crate::{error::Result, sys, connection::{Which, open}};";
    assert_eq!(in_file("events/mod.rs", group), "connection");
    assert_eq!(in_file("sys/mod.rs", "fn f() -> crate::netlink::Failure { todo!() }"), "netlink");
    assert_eq!(in_file("sampler/ticks.rs", "use crate::options::table;"), "options", "on the same floor");
    assert_eq!(in_file("emulation/pool.rs", "use crate::netlink::Channel;"), "netlink");
    assert_eq!(in_file("abi/bytes.rs", "macro_rules! m { () => { $crate::py::f() }; }"), "py");
    assert_eq!(in_file("connection/open.rs", "use crate::no_such_room;"), "no_such_room");
}

#[test]
fn the_checker_follows_super_up_to_the_root() {
    let in_file = |name, source| faults(name, source).join(" ");
    assert_eq!(in_file("events/mod.rs", "use super::namespace::Namespace;"), "namespace");
    assert_eq!(in_file("events/reader.rs", "use super::super::namespace::Namespace;"), "namespace");
    assert_eq!(in_file("events/reader.rs", "use super::{event, super::namespace};"), "namespace");
    assert_eq!(in_file("netlink/pm/codec.rs", "fn f() { super::super::super::events::f() }"), "events");
    let inline = "mod a { fn f() { super::super::super::namespace::f() } }\nuse super::namespace::codec;";
    assert_eq!(in_file("events/reader.rs", inline), "namespace", "once: the second is events::namespace");
}

#[test]
fn the_checker_lets_what_is_right_pass() {
    let source = "/// See [`crate::py`].\nuse crate::error::Error; // not crate::connection\nuse crate::{abi::{bytes, uapi}, sys};";
    assert_eq!(rooms_used("netlink/mod.rs", source), ["error", "abi", "sys"]);
    assert_eq!(faults("netlink/mod.rs", source), Vec::<String>::new());
    let quoted = r##"fn f<'a>() { ("crate::py", r#"crate::"py"#, '"', '{', "\"crate::py") } use super::py;"##;
    assert_eq!(rooms_used("netlink/codec.rs", quoted), Vec::<String>::new());
    assert_eq!(
        unsafe_uses("#![deny(unsafe_code)]\n// unsafe\nunsafe fn f() { unsafe { g(\"unsafe\") } }"),
        2
    );
}
