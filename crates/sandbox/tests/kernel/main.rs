fn main() { stave_sandbox::launcher_entry(); }
