//! Every case under criterion's clock: `cargo bench -p stave-measure [CASE]`. Beside the pure ones that the crate lists
//! these are what needs files and threads.

mod layers;
mod schedule;

use criterion::Criterion;
use stave_measure::Case;

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    for case in Case::ALL {
        let mut round = case.prepare();
        criterion.bench_function(case.name(), |bencher| bencher.iter(&mut round));
    }
    let mut time = |name: &str, mut round: Box<dyn FnMut()>| {
        criterion.bench_function(name, |bencher| bencher.iter(&mut round));
    };
    time("schedule", schedule::rounds());
    time("tar", layers::tar());
    time("unpack", layers::unpack());
    time("digest", layers::digest());
    criterion.final_summary();
}
