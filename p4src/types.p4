// Headers, enumerations and per-packet metadata. The wire format of the tag is
// described in docs/wire.md; header and field names follow it.
#ifndef COUNTERSIGN_TYPES_P4
#define COUNTERSIGN_TYPES_P4

// The carriers' numbers. They are parser constants: a parser value set would
// make them writable, but bmv2's P4Runtime server cannot write those. The
// controller compares them with the alliance's bundle and refuses to start on
// a difference; -DCARRIER_PROTOCOL=... -DCARRIER_PORT=... builds for others.
#ifndef CARRIER_PROTOCOL
#define CARRIER_PROTOCOL 253
#endif
#ifndef CARRIER_PORT
#define CARRIER_PORT 25300
#endif

#define CPU_PORT 510
#define DROP_PORT 511
#define CPU_CLONE_SESSION 1

const bit<16> ETHERTYPE_IPV4 = 0x0800;
const bit<16> ETHERTYPE_IPV6 = 0x86dd;
const bit<16> ETHERTYPE_ARP = 0x0806;
const bit<16> ETHERTYPE_VLAN = 0x8100;
const bit<16> ETHERTYPE_QINQ = 0x88a8;

const bit<8> PROTO_HOP_BY_HOP = 0;
const bit<8> PROTO_ICMP = 1;
const bit<8> PROTO_TCP = 6;
const bit<8> PROTO_UDP = 17;
const bit<8> PROTO_DCCP = 33;
const bit<8> PROTO_ROUTING = 43;
const bit<8> PROTO_FRAGMENT = 44;
const bit<8> PROTO_ICMPV6 = 58;
const bit<8> PROTO_SCTP = 132;
const bit<8> PROTO_UDPLITE = 136;
const bit<8> PROTO_TAG = CARRIER_PROTOCOL;

// Why a packet was punted or dropped; the index of the counters `drops` and
// `punts`. 1..31 are punts (held, copied, copied and dropped), 32 and up drops.
enum bit<8> Reason {
    NONE = 0,
    NEW_SESSION = 1,
    REPLY_UNKNOWN = 2,
    TAG_UNVERIFIED = 3,
    TAG_UNSIGNED = 4,
    FRAGMENT = 5,
    TOO_BIG = 6,
    TTL_EXPIRED = 7,
    ICMP_ERROR = 8,
    TO_ME = 9,
    FIRST_SEEN = 16,
    TCP_FLAGS = 17,
    SYN_PROOF = 18,
    SAMPLE = 19,
    TAG_UNKNOWN_KEY = 24,

    UNKNOWN_PORT = 32,
    TRUNCATED = 33,
    VLAN_STACKED = 34,
    NOT_IP = 35,
    IP_VERSION = 36,
    BAD_LENGTH = 37,
    BAD_OPTIONS = 38,
    JUMBOGRAM = 39,
    L4_TRUNCATED = 40,
    BAD_CHECKSUM = 41,
    SOURCE_ROUTE = 42,
    UNREADABLE_CHAIN = 43,
    MARTIAN = 44,
    LINK_SCOPE = 45,
    LAND = 46,

    TAG_ON_EDGE = 64,
    UNTAGGED_ON_TRUNK = 65,
    TAG_MALFORMED = 66,
    TAG_MISPLACED = 67,
    TAG_FRAGMENTED = 68,
    TAG_REVOKED = 69,
    TAG_FORGED = 70,
    TAG_REPLAYED = 71,
    NO_SIGNING_KEY = 72,

    NO_ROUTE = 96,
    WRONG_ZONE = 97,
    POLICY_DENY = 98,
    POLICY_DEFAULT = 99,
    PUNT_LIMITED = 100,
    PUNT_LOOP = 101,
    SOURCE_GUARD = 102,
    BLOCKLIST = 103,
    MITIGATION = 104,
    ICMP_UNPROVEN = 105,
    BAD_PACKET_OUT = 106
}

// What is attached to a port; decides what may appear on it and what leaves it.
enum bit<8> Role {
    NONE = 0,
    EDGE = 1,
    TRUNK = 2,
    ECHO = 3
}

// Signature suites, as in the tag.
enum bit<8> Suite {
    NONE = 0,
    SIPHASH = 1,
    ED25519 = 2,
    RSA2048 = 3
}

// States of a verification key that a data plane has to tell apart: `next`,
// `current` and `grace` are all ACCEPTED, `retired` and `revoked` TOMBSTONE.
enum bit<8> KeyState {
    NONE = 0,
    ACCEPTED = 1,
    ECHO_ONLY = 2,
    TOMBSTONE = 3
}

// What became of forwarded packets; the index of the counter `outcomes`.
enum bit<8> Outcome {
    FORWARDED_PLAIN = 0,
    TAGGED = 1,
    RETAGGED = 2,
    STRIPPED = 3,
    VERIFIED_SIPHASH = 4,
    VERIFIED_ED25519 = 5,
    VERIFIED_RSA2048 = 6,
    RETURNED = 7,
    SENT_BY_CPU = 8,
    MSS_CLAMPED = 9
}

// What the CPU asks of a packet-out.
enum bit<8> PacketOutMode {
    SEND = 0,    // leave by egress_port as it is
    RETURN = 1   // start the ingress pipeline again as if from ingress_port
}

enum bit<8> Disposition {
    FORWARD = 0,
    DROP = 1,
    HOLD = 2,
    SEND = 3
}

// Port flags of the action port_config.
const bit<8> PORT_ALLOW_UNTAGGED = 1;   // a trunk that admits untagged packets
const bit<8> PORT_CARRIER_UDP = 2;      // the alliance's carrier is udp
const bit<8> PORT_TRANSPARENT = 4;      // port to port: ARP and ND pass

// Where the parser found the carrier: one bit for each that it may be. Which one
// it is is known only in the stage `port`, which clears the other's.
const bit<8> FOUND_BY_IP = 0x55;
const bit<8> FOUND_BY_UDP = 0xaa;
const bit<8> FOUND_IN_PLACE = 0x03;
const bit<8> FOUND_FRAGMENTED = 0x0c;
const bit<8> FOUND_MISPLACED = 0x30;
const bit<8> FOUND_QUOTED = 0xc0;

const bit<16> ZONE_ANY = 0xffff;        // in `session`: either zone
const bit<32> CRC_BASE = 0;

typedef bit<48> mac_t;
typedef bit<16> port_t;
typedef bit<16> zone_t;

@controller_header("packet_in")
header packet_in_h {
    @id(1) Reason reason;
    @id(2) Role role;
    @id(3) port_t ingress_port;
    @id(4) zone_t zone;
    @id(5) port_t egress_port;       // 0 where it was not yet known
    @id(6) zone_t egress_zone;
}

@controller_header("packet_out")
header packet_out_h {
    @id(1) PacketOutMode mode;
    @id(2) bit<8> pad;               // 0
    @id(3) port_t egress_port;       // of SEND
    @id(4) port_t ingress_port;      // of RETURN
}

header ethernet_h {
    mac_t dst;
    mac_t src;
    bit<16> ether_type;
}

header vlan_h {
    bit<3> pcp;
    bit<1> dei;
    bit<12> vid;
    bit<16> ether_type;
}

header ipv4_h {
    bit<4> version;
    bit<4> ihl;
    bit<8> tos;
    bit<16> total_len;
    bit<16> id;
    bit<1> reserved;
    bit<1> df;
    bit<1> mf;
    bit<13> frag_offset;
    bit<8> ttl;
    bit<8> protocol;
    bit<16> checksum;
    bit<32> src;
    bit<32> dst;
}

header word_h {
    bit<32> value;
}

header ipv6_h {
    bit<4> version;
    bit<8> traffic_class;
    bit<20> flow_label;
    bit<16> payload_len;
    bit<8> next_header;
    bit<8> hop_limit;
    bit<128> src;
    bit<128> dst;
}

header hop_by_hop_h {
    bit<8> next_header;
    bit<8> length;
    varbit<16368> rest;
}

// The carrier `udp`, and UDP itself.
header udp_h {
    bit<16> src_port;
    bit<16> dst_port;
    bit<16> length;
    bit<16> checksum;
}

header tag_h {
    bit<8> next_header;
    bit<8> length;
    bit<4> version;
    bit<4> suite;
    bit<8> flags;
    bit<32> unid;
    bit<16> epoch;
    bit<16> reserved;
    bit<64> nonce;
    bit<64> digest;
}

header sealed_64_h {
    bit<512> bytes;
}

header sealed_256_h {
    bit<2048> bytes;
}

header fragment_h {
    bit<8> next_header;
    bit<8> reserved;
    bit<13> offset;
    bit<1> reserved2;
    bit<1> df;          // the lower reserved bit keeps an IPv4 packet's DF
    bit<1> more;
    bit<32> id;
}

header tcp_h {
    bit<16> src_port;
    bit<16> dst_port;
    bit<32> seq;
    bit<32> ack;
    bit<4> data_offset;
    bit<4> reserved;
    bit<8> flags;
    bit<16> window;
    bit<16> checksum;
    bit<16> urgent;
}

header tcp_mss_h {
    bit<8> kind;
    bit<8> length;
    bit<16> value;
}

header ports_h {
    bit<16> src_port;
    bit<16> dst_port;
}

header icmp_h {
    bit<8> type;
    bit<8> code;
    bit<16> checksum;
    bit<16> id;
    bit<16> rest;
}

const bit<8> TCP_FIN = 0x01;
const bit<8> TCP_SYN = 0x02;
const bit<8> TCP_RST = 0x04;
const bit<8> TCP_ACK = 0x10;

struct headers_t {
    packet_in_h packet_in;
    packet_out_h packet_out;
    ethernet_h ethernet;
    vlan_h vlan;
    ipv4_h ipv4;
    word_h[10] ipv4_options;
    ipv6_h ipv6;
    hop_by_hop_h hop_by_hop;
    // The member's own tag, on packets that leave with it.
    udp_h own_udp;
    tag_h own_tag;
    sealed_64_h own_sealed_64;
    sealed_256_h own_sealed_256;
    // The tag as it came; under the carrier that is not the alliance's, payload.
    udp_h outer_udp;        // UDP directly behind IP, the carrier or not
    tag_h tag;
    sealed_64_h sealed_64;
    sealed_256_h sealed_256;
    fragment_h fragment;
    tcp_h tcp;
    tcp_mss_h tcp_mss;
    udp_h udp;
    ports_h ports;
    icmp_h icmp;
}

// SipHash-2-4 state and the words of M (docs/wire.md). They are metadata fields
// and not locals so that p4c compiles them quickly. w2 and w3 belong to the
// packet, the others to one tag.
struct siphash_t {
    bit<64> v0;
    bit<64> v1;
    bit<64> v2;
    bit<64> v3;
    bit<64> k0;
    bit<64> k1;
    bit<64> w0;
    bit<64> w1;
    bit<64> w2;
    bit<64> w3;             // IPv4 only
}

// bmv2 clears every field for every packet, so there is none to spare.
struct metadata_t {
    // Preserved by clone sessions: what packet_in says.
    @field_list(1) Reason punt_reason;
    @field_list(1) Role role;
    @field_list(1) port_t in_port;
    @field_list(1) zone_t zone;
    @field_list(1) port_t out_port;
    @field_list(1) zone_t out_zone;

    // Disposition.
    Disposition disposition;
    Reason reason;
    Reason copy;
    bit<1> returned;

    // Parser findings.
    bit<16> left;            // bytes left of the frame, then of the IP packet
    bit<16> ip_len;          // whole IP packet
    bit<8> family;
    Reason anomaly;          // fatal finding
    bit<8> carrier;          // FOUND_...
    bit<1> arp;
    bit<1> raw;              // ARP or ND, port to port: forwarded as it is
    bit<1> neighbour;
    bit<1> icmp_error;
    bit<1> source_route;
    bit<1> unreadable;
    bit<1> bad_checksum;
    bit<12> vlan;

    // Port.
    bit<8> port_flags;
    bit<1> tagged;

    // Sorted five-tuple.
    bit<8> protocol;
    bit<16> kind;
    bit<16> src_port;
    bit<16> dst_port;
    bit<32> low;
    bit<32> high;
    bit<128> low6;
    bit<128> high6;
    bit<16> low_port;
    bit<16> high_port;
    bit<1> src_is_low;
    bit<32> flow_hash;
    bit<8> tcp_flags;

    // Verifying.
    KeyState key_state;
    bit<1> own_site;
    bit<1> verified;
    bit<32> sealed_crc;

    // Egress.
    bit<1> transparent;
    bit<12> out_vlan;
    Role out_role;
    bit<16> mtu;
    bit<32> out_len;         // whole IP packet as it leaves
    mac_t next_src;
    mac_t next_dst;

    siphash_t sip;
}

#endif
