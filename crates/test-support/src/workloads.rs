//! The benchmark and test workloads: build contexts written to disk with the same bytes every time.
//!
//! Small contexts stand under `testdata/workloads/`; those with thousands of files or generated
//! instructions are made here. Every Dockerfile takes the build argument `REGISTRY`, the host that
//! serves the base images.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A build context with its Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// C compiled statically, copied into `scratch`.
    HelloC,
    /// `npm install` over the network and 3,000 source files.
    NodeApp,
    /// `pip install`, a stage that runs the tests, a final stage without them.
    PythonApp,
    /// 20,000 files, 200 MB, copied at once.
    ManyFiles,
    /// Twelve independent stages that sleep a second each.
    FanOut,
    /// Twelve independent stages that compute for about a second each.
    FanOutCpu,
    /// Sixty trivial RUN steps in a row.
    Chain60,
    /// Two hundred of them.
    Chain200,
    /// One RUN that writes 500 MB of mixed content.
    BigLayer,
    /// One RUN that writes 2 GB of it.
    BigLayer2G,
    /// 200,000 small files, copied at once.
    ManyFiles200k,
    /// A base image of some 360 MB, and a step that needs it whole.
    Toolchain,
}

/// A file that a workload's image must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// From the root, without a leading slash.
    pub path: String,
    /// What is in it.
    pub content: Content,
}

/// What is known of a file, or of all files below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Text(String),
    /// This many bytes.
    Bytes(u64),
    /// So many bytes or more.
    AtLeast(u64),
    /// So many files below, with so many bytes in all.
    Folder {
        /// Files, folders not counted.
        files: u64,
        /// Their lengths, summed.
        bytes: u64,
    },
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::HelloC,
        Self::NodeApp,
        Self::PythonApp,
        Self::ManyFiles,
        Self::FanOut,
        Self::FanOutCpu,
        Self::Chain60,
        Self::Chain200,
        Self::BigLayer,
        Self::BigLayer2G,
        Self::ManyFiles200k,
        Self::Toolchain,
    ];

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::HelloC => "hello-c",
            Self::NodeApp => "node-app",
            Self::PythonApp => "python-app",
            Self::ManyFiles => "many-files",
            Self::FanOut => "fan-out",
            Self::FanOutCpu => "fan-out-cpu",
            Self::Chain60 => "chain-60",
            Self::Chain200 => "chain-200",
            Self::BigLayer => "big-layer",
            Self::BigLayer2G => "big-layer-2g",
            Self::ManyFiles200k => "many-files-200k",
            Self::Toolchain => "toolchain",
        }
    }

    /// Writes the context under `folder` and returns its path.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(self, folder: &Path) -> io::Result<PathBuf> {
        let context = folder.join(self.name());
        fs::create_dir_all(&context)?;
        match self {
            Self::HelloC | Self::PythonApp => copy_tree(&fixture(self.name()), &context)?,
            Self::NodeApp => {
                copy_tree(&fixture(self.name()), &context)?;
                node_sources(&context)?;
            }
            Self::ManyFiles => many_files(&context, 20_000)?,
            Self::ManyFiles200k => tiny_files(&context, 200_000)?,
            Self::FanOut => fs::write(context.join("Dockerfile"), fan_out("sleep 1"))?,
            Self::FanOutCpu => {
                let busy = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done";
                fs::write(context.join("Dockerfile"), fan_out(busy))?;
            }
            Self::Chain60 => fs::write(context.join("Dockerfile"), chain(60))?,
            Self::Chain200 => fs::write(context.join("Dockerfile"), chain(200))?,
            Self::BigLayer => fs::write(context.join("Dockerfile"), big_layer(1))?,
            Self::BigLayer2G => fs::write(context.join("Dockerfile"), big_layer(4))?,
            Self::Toolchain => fs::write(context.join("Dockerfile"), TOOLCHAIN)?,
        }
        Ok(context)
    }

    /// What its image must hold, by whatever builder: files whose content does not depend on the day.
    pub fn expected(self) -> Vec<Expected> {
        let file = |path: String, content| Expected { path, content };
        let text = |path: String, text: String| file(path, Content::Text(text));
        let chain = |steps: u32| {
            (1..=steps).map(|step| text(format!("f{step}"), format!("{step}\n"))).collect::<Vec<_>>()
        };
        match self {
            Self::HelloC => vec![file("hello".to_owned(), Content::AtLeast(100_000))],
            Self::NodeApp => {
                vec![file("app/node_modules/express/package.json".to_owned(), Content::AtLeast(1))]
            }
            Self::PythonApp => vec![file("test-report.txt".to_owned(), Content::AtLeast(1))],
            Self::ManyFiles => many_files_expected(20_000),
            Self::ManyFiles200k => tiny_files_expected(200_000),
            Self::FanOut | Self::FanOutCpu => {
                (1..=12).map(|stage| text(format!("out/out{stage}"), format!("stage {stage}\n"))).collect()
            }
            Self::Chain60 => chain(60),
            Self::Chain200 => chain(200),
            Self::BigLayer | Self::BigLayer2G => {
                let parts = if self == Self::BigLayer { 1 } else { 4 };
                let part = |part: u32, (name, bytes): (&str, u64)| {
                    file(format!("big/{part}/{name}"), Content::Bytes(bytes))
                };
                (1..=parts)
                    .flat_map(|number| BIG_FILES.into_iter().map(move |one| part(number, one)))
                    .collect()
            }
            Self::Toolchain => vec![text("done".to_owned(), "done\n".to_owned())],
        }
    }
}

/// A context under `testdata/workloads/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/workloads").join(name)
}

/// Copies plain files and folders.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// `steps` RUN instructions, each writing one file.
pub fn chain(steps: usize) -> String {
    chain_called("", steps)
}

/// As [`chain`], with a name in each file, so that two chains share no step.
pub fn chain_called(name: &str, steps: usize) -> String {
    let mut text = String::from("ARG REGISTRY=localhost:5000\nFROM ${REGISTRY}/busybox\n");
    for step in 1..=steps {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "RUN echo {name}{step} > /f{step}");
    }
    text
}

fn fan_out(work: &str) -> String {
    let mut text = String::from("ARG REGISTRY=localhost:5000\n");
    let mut merge = String::from("FROM ${REGISTRY}/busybox\n");
    for stage in 1..=12 {
        let _infallible = write!(
            text,
            "FROM ${{REGISTRY}}/busybox AS s{stage}\nRUN {work}; echo stage {stage} > /out{stage}\n"
        );
        let _infallible = writeln!(merge, "COPY --from=s{stage} /out{stage} /out/");
    }
    text + &merge
}

const TOOLCHAIN: &str = "ARG REGISTRY=localhost:5000\nFROM ${REGISTRY}/gcc\nRUN echo done > /done\n";

/// What one part of [`big_layer`] writes: names and lengths.
const BIG_FILES: [(&str, u64); 5] = [
    ("lines-1", 125_000_000),
    ("lines-2", 125_000_000),
    ("random", 60_000_000),
    ("log", 65_000_000),
    ("hex", 125_000_000),
];

/// One RUN that writes `parts` times 500 MB: some of it compresses well, some not at all. The build argument
/// `MARK` makes layers that differ.
fn big_layer(parts: usize) -> String {
    let numbers: Vec<String> = (1..=parts).map(|part| part.to_string()).collect();
    BIG_LAYER.replace("PARTS", &numbers.join(" "))
}

const BIG_LAYER: &str = r#"ARG REGISTRY=localhost:5000
FROM ${REGISTRY}/debian
ARG MARK=none
RUN noise() { openssl enc -aes-128-ctr -K 0123456789abcdef0123456789abcd$1 -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null; } \
 && for part in PARTS; do mkdir -p /big/$part && cd /big/$part \
 && noise ${part}1 | base64 -w 76 | head -c 125000000 > lines-1; noise ${part}2 | base64 -w 76 | head -c 125000000 > lines-2; \
    noise ${part}3 | head -c 60000000 > random; \
    yes 'an ordinary line of a log, 2026-01-01T00:00:00Z level=info msg="all is well"' | head -c 65000000 > log; \
    noise ${part}4 | od -An -tx1 -v | head -c 125000000 > hex; done \
 && echo "$MARK" > /big/mark
"#;

fn node_sources(context: &Path) -> io::Result<()> {
    let mut noise = Noise(7);
    let text = noise.text(2_000_000);
    for module in 0..3_000_usize {
        let folder = if module == 0 { "src".to_owned() } else { format!("src/d{}", module % 60) };
        fs::create_dir_all(context.join(&folder))?;
        let length = 300 + noise.below(5_700);
        let start = noise.below(text.len() - length);
        let comment = text[start..start + length].replace('\n', "\n// ");
        let source = format!("// {comment}\nmodule.exports = {module};\n");
        fs::write(context.join(folder).join(format!("m{module}.js")), source)?;
    }
    Ok(())
}

/// Writes `count` files of 10 kB on average, in folders of fifty, and a Dockerfile that copies them.
///
/// # Errors
/// When a file cannot be written.
pub fn many_files(context: &Path, count: usize) -> io::Result<()> {
    fs::write(context.join("Dockerfile"), COPY_ALL)?;
    let mut noise = Noise(11);
    let text = noise.text(4_000_000).into_bytes();
    for file in 0..count {
        let folder = context.join(folder(file));
        if file % 50 == 0 {
            fs::create_dir_all(&folder)?;
        }
        let length = length(&mut noise);
        let bytes = if file % 4 == 0 {
            noise.bytes(length)
        } else {
            let start = noise.below(text.len() - length);
            text[start..start + length].to_vec()
        };
        fs::write(folder.join(format!("f{file:06}.dat")), bytes)?;
    }
    Ok(())
}

const COPY_ALL: &str = "ARG REGISTRY=localhost:5000\nFROM ${REGISTRY}/busybox\nWORKDIR /data\nCOPY . .\n";

fn folder(file: usize) -> String {
    format!("p{:03}/q{:02}", file / 1_000, file / 50 % 20)
}

/// Most files are small, a few are large: the product of two uniform draws.
fn length(noise: &mut Noise) -> usize {
    200 + noise.below(200) * noise.below(200)
}

/// What [`many_files`] adds up to below `/data/p`: the same draws without the writing.
fn many_files_expected(count: usize) -> Vec<Expected> {
    let mut noise = Noise(11);
    let text = noise.text(4_000_000);
    let mut total = 0;
    for file in 0..count {
        let length = length(&mut noise);
        if file % 4 == 0 {
            drop(noise.bytes(length));
        } else {
            noise.below(text.len() - length);
        }
        total += length as u64;
    }
    let content = Content::Folder { files: count as u64, bytes: total };
    vec![Expected { path: "data/p".to_owned(), content }]
}

/// Writes `count` files of one line each and a Dockerfile that copies them.
///
/// # Errors
/// When a file cannot be written.
pub fn tiny_files(context: &Path, count: usize) -> io::Result<()> {
    fs::write(context.join("Dockerfile"), COPY_ALL)?;
    for file in 0..count {
        let folder = context.join(folder(file));
        if file % 50 == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(format!("f{file:06}.dat")), format!("{file}\n"))?;
    }
    Ok(())
}

fn tiny_files_expected(count: usize) -> Vec<Expected> {
    let bytes = (0..count).map(|file| file.to_string().len() as u64 + 1).sum();
    vec![Expected { path: "data/p".to_owned(), content: Content::Folder { files: count as u64, bytes } }]
}

/// A small deterministic generator (splitmix64): test content needs no better one.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Lower-case words in lines: compresses as prose does.
    fn text(&mut self, length: usize) -> String {
        let mut words = Vec::new();
        for _ in 0..4_000 {
            let letters = 2 + self.below(8);
            words.push(
                (0..letters)
                    .map(|_| char::from(b"etaoinshrdlucmfwypvbgkqjxz"[self.below(26)]))
                    .collect::<String>(),
            );
        }
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            for _ in 0..12 {
                text.push_str(&words[self.below(words.len())]);
                text.push(' ');
            }
            text.push('\n');
        }
        text.truncate(length);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_content_is_the_same_every_time() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let read = |folder: &tempfile::TempDir| {
            many_files(folder.path(), 120).expect("writes");
            fs::read(folder.path().join("p000/q02/f000101.dat")).expect("is there")
        };
        let [first, second] = [read(&folders[0]), read(&folders[1])];
        assert!(!first.is_empty());
        assert_eq!(first, second);
    }

    #[test]
    fn what_is_expected_is_what_is_written() {
        let check = |write: fn(&Path, usize) -> io::Result<()>, expected: Vec<Expected>| {
            let context = tempfile::tempdir().expect("a folder");
            write(context.path(), 1_100).expect("writes");
            let mut found = (0, 0);
            for outer in fs::read_dir(context.path()).expect("is there").flatten() {
                let inner = fs::read_dir(outer.path()).into_iter().flatten().flatten();
                for file in inner.flat_map(|inner| fs::read_dir(inner.path()).expect("a folder").flatten()) {
                    found = (found.0 + 1, found.1 + file.metadata().expect("a file").len());
                }
            }
            let content = Content::Folder { files: found.0, bytes: found.1 };
            assert_eq!(expected, [Expected { path: "data/p".to_owned(), content }]);
        };
        check(many_files, many_files_expected(1_100));
        check(tiny_files, tiny_files_expected(1_100));
    }

    #[test]
    fn every_workload_has_a_dockerfile() {
        let folder = tempfile::tempdir().expect("a folder");
        for workload in Workload::ALL {
            if !matches!(workload, Workload::ManyFiles | Workload::ManyFiles200k) {
                let context = workload.write(folder.path()).expect("writes");
                assert!(context.join("Dockerfile").is_file(), "{}", workload.name());
            }
        }
    }
}
