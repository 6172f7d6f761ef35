// Stage `replay`: exact repeats of suite 1 tags, told by a time-sliced filter in registers. Its place in the
// pipeline is fixed here; it has no tables yet and passes everything.
control Replay(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}
