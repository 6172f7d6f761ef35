/* A data plane for the tests of a P4Runtime session: every packet-out comes
 * back as a packet-in, once more as a clone if it asks for that, and there is
 * a table of each kind.
 *
 * p4c-bm2-ss --p4runtime-files echo.p4info.txtpb -o echo.json echo.p4
 */
#include <core.p4>
#include <v1model.p4>

const bit<9> CPU_PORT = 510;
const bit<32> CLONE_SESSION = 5;

@controller_header("packet_out")
header packet_out_t {
    bit<32> key;
    bit<8> copy; // not 0: clone too
}

@controller_header("packet_in")
header packet_in_t {
    bit<32> key;
    bit<8> hit; // 1 if a session matched
}

struct headers_t {
    packet_out_t packet_out;
    packet_in_t packet_in;
}

struct metadata_t {
    bit<32> key;
}

parser parse(packet_in packet, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t std) {
    state start {
        packet.extract(hdr.packet_out);
        transition accept;
    }
}

control verify_checksums(inout headers_t hdr, inout metadata_t meta) { apply { } }

control ingress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t std) {
    @id(0x12000001) counter(16, CounterType.packets_and_bytes) seen;
    @id(0x14000001) meter(16, MeterType.packets) limits;
    @id(0x13000001) direct_counter(CounterType.packets) route_hits;
    @id(0x15000001) direct_meter<bit<8>>(MeterType.packets) acl_limit;
    @id(0x11000001) action_selector(HashAlgorithm.crc16, 64, 16) next_hops;

    bit<8> color;

    @id(0x01000001) action admit(bit<8> zone) { hdr.packet_in.hit = 1; }
    @id(0x01000002) action forward(bit<9> port) { route_hits.count(); }
    @id(0x01000003) action permit(bit<16> rule) { acl_limit.read(color); }
    @id(0x01000004) action hop(bit<9> port) { }

    @id(0x02000001) table route {
        key = { meta.key : lpm; }
        actions = { forward; @defaultonly NoAction; }
        counters = route_hits;
        size = 1024;
    }
    @id(0x02000002) table acl {
        key = { meta.key : ternary; hdr.packet_out.copy : optional; }
        actions = { permit; @defaultonly NoAction; }
        meters = acl_limit;
        size = 1024;
    }
    @id(0x02000003) table session {
        key = { meta.key : exact; }
        actions = { admit; @defaultonly NoAction; }
        support_timeout = true;
        size = 1048576;
    }
    @id(0x02000004) table hops {
        key = { meta.key : range; meta.key : selector; }
        actions = { hop; @defaultonly NoAction; }
        implementation = next_hops;
        size = 64;
    }

    apply {
        meta.key = hdr.packet_out.key;
        hdr.packet_in.setValid();
        hdr.packet_in.key = meta.key;
        hdr.packet_in.hit = 0;
        route.apply();
        acl.apply();
        session.apply();
        hops.apply();
        seen.count(meta.key & 15);
        limits.execute_meter(meta.key & 15, color);
        if (hdr.packet_out.copy != 0) {
            clone(CloneType.I2E, CLONE_SESSION);
        }
        hdr.packet_out.setInvalid();
        std.egress_spec = CPU_PORT;
    }
}

control egress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t std) {
    apply {
        if (std.instance_type != 0) { // a clone, parsed anew
            hdr.packet_in.setValid();
            hdr.packet_in.key = hdr.packet_out.key;
            hdr.packet_in.hit = 0xff;
            hdr.packet_out.setInvalid();
        }
    }
}

control compute_checksums(inout headers_t hdr, inout metadata_t meta) { apply { } }

control deparse(packet_out packet, in headers_t hdr) {
    apply {
        packet.emit(hdr.packet_in);
    }
}

V1Switch(parse(), verify_checksums(), ingress(), egress(), compute_checksums(), deparse()) main;
