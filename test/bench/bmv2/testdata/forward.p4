// The least that forwards: port in, port out. It is what a pipeline on the same
// bmv2 is measured beside. forward.json and forward.p4info.txtpb are made by
//   p4c-bm2-ss --p4runtime-files forward.p4info.txtpb -o forward.json forward.p4
#include <core.p4>
#include <v1model.p4>

header ethernet_h {
    bit<48> dst;
    bit<48> src;
    bit<16> ether_type;
}

struct headers_t {
    ethernet_h ethernet;
}

struct metadata_t { }

parser ForwardParser(packet_in packet, out headers_t hdr, inout metadata_t meta,
                     inout standard_metadata_t standard_metadata) {
    state start {
        packet.extract(hdr.ethernet);
        transition accept;
    }
}

control Nothing(inout headers_t hdr, inout metadata_t meta) {
    apply { }
}

control ForwardIngress(inout headers_t hdr, inout metadata_t meta,
                       inout standard_metadata_t standard_metadata) {
    @id(0x01000001)
    action send(@id(1) bit<9> port) {
        standard_metadata.egress_spec = port;
    }

    @id(0x01000002)
    action drop() {
        mark_to_drop(standard_metadata);
    }

    @id(0x02000001)
    table forward {
        key = { standard_metadata.ingress_port : exact @id(1); }
        actions = { send; drop; }
        const default_action = drop();
        size = 512;
    }

    apply {
        forward.apply();
    }
}

control ForwardEgress(inout headers_t hdr, inout metadata_t meta,
                      inout standard_metadata_t standard_metadata) {
    apply { }
}

control ForwardDeparser(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.ethernet);
    }
}

V1Switch(ForwardParser(), Nothing(), ForwardIngress(), ForwardEgress(), Nothing(), ForwardDeparser()) main;
