use super::*;
#[test]
fn speed() {
    let test = TestStore::new();
    let t = std::time::Instant::now();
    let mut last = Snapshot::scratch();
    let _lease = test.store.lease().expect("");
    let mut worst = std::time::Duration::ZERO;
    for i in 0..120 {
        let t = std::time::Instant::now();
        let a = test.store.prepare(&last).expect("");
        fs::write(a.upper().join("f"), i.to_string()).expect("");
        last = a.commit().expect("");
        worst = worst.max(t.elapsed());
    }
    println!("120 steps {:?}/step worst {worst:?}", t.elapsed() / 120);
    for _ in 0..5 {
        let t = std::time::Instant::now();
        let s = Store::open(test.root()).expect("");
        let o = t.elapsed();
        let e = s.exists(&last).expect("");
        println!("open {o:?} exists {:?} {e}", t.elapsed());
        let t = std::time::Instant::now();
        drop(s);
        println!("drop {:?}", t.elapsed());
    }
    let t = std::time::Instant::now();
    test.store.sync().expect("");
    println!("sync {:?}", t.elapsed());
    let root = test.root().to_owned();
    let dir = test.directory;
    drop(_lease);
    drop(test.store);
    for _ in 0..5 {
        let t = std::time::Instant::now();
        let s = Store::open(&root).expect("");
        println!("sole open {:?}", t.elapsed());
        let t = std::time::Instant::now();
        drop(s);
        println!("drop {:?} wal {:?}", t.elapsed(), fs::metadata(root.join("store.db-wal")).map(|m| m.len()));
    }
    drop(dir);
}
