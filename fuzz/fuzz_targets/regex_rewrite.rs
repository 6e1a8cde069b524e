#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fairway_fuzz::regex_rewrite::rewritten(data));
