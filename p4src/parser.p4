// The parser. It records what it finds and judges nothing; a fatal finding ends
// it with an error, of which countersign.p4 makes the reason. Which carrier
// counts is not known here, so both are read as one optional header and `port`
// decides. `left` bounds what is read: first the frame, then the IP packet.
error {
    VLANStacked,
    NotIP,
    IPVersion,
    BadLength,
    BadOptions,
    Jumbogram,
    L4Truncated,
    TagMalformed
}

const bit<32> FIRST_BYTE_TAG = (bit<32>)PROTO_TAG << 24;

parser CountersignParser(packet_in packet, out headers_t hdr,
                         inout metadata_t meta,
                         inout standard_metadata_t standard_metadata) {
    // What lies ahead, from the cursor on.
    bit<16> ahead_16;
    bit<32> ahead_32;
    bit<56> ahead_56;
    bit<80> ahead_80;
    bit<192> ahead_192;
    bit<352> ahead_352;

    // IPv4 options, the next one at the top, and how many bytes are left. Shifts
    // by bytes are done in two halves, because bmv2 takes amounts below 256.
    bit<320> options;
    bit<8> option_left;
    bit<8> option_length;

    state start {
        meta.in_port = (port_t)standard_metadata.ingress_port;
        meta.left = (bit<16>)standard_metadata.packet_length;
        transition select(standard_metadata.ingress_port) {
            CPU_PORT: parse_packet_out;
            default: parse_ethernet;
        }
    }

    state parse_packet_out {
        packet.extract(hdr.packet_out);
        meta.left = meta.left - 6;
        transition select(hdr.packet_out.mode) {
            PacketOutMode.RETURN: parse_returned;
            default: accept;
        }
    }

    state parse_returned {
        meta.returned = 1;
        meta.in_port = hdr.packet_out.ingress_port;
        transition parse_ethernet;
    }

    // A frame that ends within these headers ends parsing with PacketTooShort.
    state parse_ethernet {
        packet.extract(hdr.ethernet);
        meta.left = meta.left - 14;
        transition select(hdr.ethernet.ether_type) {
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_IPV6: parse_ipv6;
            ETHERTYPE_VLAN: parse_vlan;
            ETHERTYPE_ARP: parse_arp;
            ETHERTYPE_QINQ: vlan_stacked;
            default: not_ip;
        }
    }

    state parse_vlan {
        packet.extract(hdr.vlan);
        meta.left = meta.left - 4;
        meta.vlan = hdr.vlan.vid;
        transition select(hdr.vlan.ether_type) {
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_IPV6: parse_ipv6;
            ETHERTYPE_VLAN: vlan_stacked;
            ETHERTYPE_QINQ: vlan_stacked;
            ETHERTYPE_ARP: parse_arp;
            default: not_ip;
        }
    }

    state truncated { verify(false, error.PacketTooShort); transition accept; }
    state vlan_stacked { verify(false, error.VLANStacked); transition accept; }
    state not_ip { verify(false, error.NotIP); transition accept; }
    state ip_version { verify(false, error.IPVersion); transition accept; }
    state bad_length { verify(false, error.BadLength); transition accept; }
    state jumbogram { verify(false, error.Jumbogram); transition accept; }
    state l4_truncated { verify(false, error.L4Truncated); transition accept; }
    state tag_malformed { verify(false, error.TagMalformed); transition accept; }

    state parse_arp {
        transition select(meta.left) {
            0 .. 27: truncated;
            default: arp;
        }
    }

    state arp { meta.arp = 1; transition accept; }

    // ---- IPv4 -------------------------------------------------------------

    state parse_ipv4 {
        packet.extract(hdr.ipv4);
        transition select(hdr.ipv4.version, hdr.ipv4.ihl) {
            (4, 0 .. 4): bad_length;
            (4, _): ipv4_length;
            default: ip_version;
        }
    }

    state ipv4_length {
        verify(hdr.ipv4.total_len >= ((bit<16>)hdr.ipv4.ihl << 2), error.BadLength);
        verify(hdr.ipv4.total_len <= meta.left, error.BadLength);
        meta.family = 4;
        meta.ip_len = hdr.ipv4.total_len;
        meta.left = hdr.ipv4.total_len - ((bit<16>)hdr.ipv4.ihl << 2);
        meta.protocol = hdr.ipv4.protocol;
        transition select(hdr.ipv4.ihl, hdr.ipv4.mf, hdr.ipv4.frag_offset) {
            (5, 0, 0): parse_carrier;
            (5, _, _): ipv4_is_fragment;
            default: ipv4_options;
        }
    }

    // Options are walked one by one: which of them route by source is a matter
    // of drop.
    state ipv4_options {
        options = 0;
        option_left = ((bit<8>)hdr.ipv4.ihl << 2) - 20;
        transition ipv4_option_word;
    }

    state ipv4_option_word {
        packet.extract(hdr.ipv4_options.next);
        options = options << 32 | (bit<320>)hdr.ipv4_options.last.value;
        option_left = option_left - 4;
        transition select(option_left) {
            0: ipv4_options_read;
            default: ipv4_option_word;
        }
    }

    state ipv4_options_read {
        option_left = ((bit<8>)hdr.ipv4.ihl << 2) - 20;
        option_length = 40 - option_left;
        options = (options << (option_length << 2)) << (option_length << 2);
        transition ipv4_option;
    }

    state ipv4_option {
        transition select(option_left) {
            0: ipv4_fragment;
            default: ipv4_option_kind;
        }
    }

    state ipv4_option_kind {
        transition select(options[319:312]) {
            0: ipv4_fragment;
            1: ipv4_option_nop;
            131: ipv4_source_route;
            137: ipv4_source_route;
            default: ipv4_option_length;
        }
    }

    state ipv4_option_nop {
        options = options << 8;
        option_left = option_left - 1;
        transition ipv4_option;
    }

    state ipv4_source_route {
        meta.source_route = 1;
        transition ipv4_option_length;
    }

    state ipv4_option_length {
        option_length = options[311:304];
        verify(option_left >= 2, error.BadOptions);
        verify(option_length >= 2, error.BadOptions);
        verify(option_length <= option_left, error.BadOptions);
        options = (options << (option_length << 2)) << (option_length << 2);
        option_left = option_left - option_length;
        transition ipv4_option;
    }

    state ipv4_fragment {
        transition select(hdr.ipv4.mf, hdr.ipv4.frag_offset) {
            (0, 0): parse_carrier;
            default: ipv4_is_fragment;
        }
    }

    state ipv4_is_fragment {
        meta.kind = 2;
        meta.dst_port = hdr.ipv4.id;
        transition select(hdr.ipv4.protocol, hdr.ipv4.frag_offset) {
            (PROTO_TAG, _): ipv4_carrier_ip_fragmented;
            (PROTO_UDP, 0): ipv4_fragment_udp;
            default: accept;
        }
    }

    state ipv4_carrier_ip_fragmented {
        meta.carrier = FOUND_FRAGMENTED & FOUND_BY_IP;
        transition accept;
    }

    state ipv4_fragment_udp {
        transition select(meta.left) {
            0 .. 7: accept;
            default: ipv4_fragment_udp_port;
        }
    }

    state ipv4_fragment_udp_port {
        ahead_32 = packet.lookahead<bit<32>>();
        transition select(ahead_32) {
            CARRIER_PORT &&& 0xffff: ipv4_carrier_udp_fragmented;
            default: accept;
        }
    }

    state ipv4_carrier_udp_fragmented {
        meta.carrier = FOUND_FRAGMENTED & FOUND_BY_UDP;
        transition accept;
    }

    // ---- IPv6 -------------------------------------------------------------

    state parse_ipv6 {
        packet.extract(hdr.ipv6);
        transition select(hdr.ipv6.version) {
            6: ipv6_length;
            default: ip_version;
        }
    }

    state ipv6_length {
        verify(hdr.ipv6.payload_len <= meta.left - 40, error.BadLength);
        meta.family = 6;
        meta.ip_len = hdr.ipv6.payload_len + 40;
        meta.left = hdr.ipv6.payload_len;
        meta.protocol = hdr.ipv6.next_header;
        transition select(hdr.ipv6.next_header) {
            PROTO_HOP_BY_HOP: parse_hop_by_hop;
            default: parse_carrier;
        }
    }

    state parse_hop_by_hop {
        transition select(meta.left) {
            0: jumbogram;
            1 .. 7: bad_length;
            default: extract_hop_by_hop;
        }
    }

    state extract_hop_by_hop {
        ahead_16 = packet.lookahead<bit<16>>();
        verify(((ahead_16 & 0xff) + 1) << 3 <= meta.left, error.BadLength);
        packet.extract(hdr.hop_by_hop, (bit<32>)(((ahead_16 & 0xff) + 1) << 6) - 16);
        meta.left = meta.left - (((ahead_16 & 0xff) + 1) << 3);
        meta.protocol = hdr.hop_by_hop.next_header;
        transition parse_carrier;
    }

    // ---- Carrier and tag --------------------------------------------------

    state parse_carrier {
        transition select(meta.protocol) {
            PROTO_TAG: carrier_ip;
            PROTO_UDP: parse_outer_udp;
            default: parse_protocol;
        }
    }

    state carrier_ip {
        meta.carrier = FOUND_IN_PLACE & FOUND_BY_IP;
        transition parse_tag;
    }

    // UDP directly behind IP: the carrier, or what it carries.
    state parse_outer_udp {
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: extract_outer_udp;
        }
    }

    state extract_outer_udp {
        packet.extract(hdr.outer_udp);
        meta.src_port = hdr.outer_udp.src_port;
        meta.dst_port = hdr.outer_udp.dst_port;
        transition select(hdr.outer_udp.dst_port) {
            CARRIER_PORT: carrier_udp;
            default: accept;
        }
    }

    state carrier_udp {
        meta.left = meta.left - 8;
        meta.src_port = 0;
        meta.dst_port = 0;
        meta.carrier = FOUND_IN_PLACE & FOUND_BY_UDP;
        transition parse_tag;
    }

    state parse_tag {
        transition select(meta.left) {
            0 .. 27: tag_malformed;
            default: extract_tag;
        }
    }

    state extract_tag {
        packet.extract(hdr.tag);
        meta.left = meta.left - 28;
        meta.protocol = hdr.tag.next_header;
        transition select(hdr.tag.version, hdr.tag.suite, hdr.tag.length,
                          hdr.tag.flags, hdr.tag.reserved) {
            (1, 1, 7, 0 &&& 0xfe, 0): tag_next_header;
            (1, 2, 23, 0 &&& 0xfe, 0): tag_sealed_64;
            (1, 3, 71, 0 &&& 0xfe, 0): tag_sealed_256;
            default: tag_malformed;
        }
    }

    state tag_sealed_64 {
        transition select(meta.left) {
            0 .. 63: tag_malformed;
            default: extract_sealed_64;
        }
    }

    state extract_sealed_64 {
        packet.extract(hdr.sealed_64);
        meta.left = meta.left - 64;
        transition tag_next_header;
    }

    state tag_sealed_256 {
        transition select(meta.left, hdr.tag.nonce) {
            (0 .. 255, _): tag_malformed;
            (_, 0): extract_sealed_256;
            default: tag_malformed;
        }
    }

    state extract_sealed_256 {
        packet.extract(hdr.sealed_256);
        meta.left = meta.left - 256;
        transition tag_next_header;
    }

    state tag_next_header {
        transition select(hdr.tag.next_header, meta.family) {
            (PROTO_HOP_BY_HOP, _): tag_malformed;
            (PROTO_TAG, _): tag_malformed;
            (PROTO_ROUTING, 4): tag_malformed;
            (60, 4): tag_malformed;
            (PROTO_FRAGMENT, _): parse_fragment;
            default: parse_protocol;
        }
    }

    // ---- Behind the carrier ----------------------------------------------

    state parse_protocol {
        transition select(meta.protocol, meta.family) {
            (PROTO_TCP, _): parse_tcp;
            (PROTO_UDP, _): parse_udp;
            (PROTO_ICMP, 4): parse_icmp;
            (PROTO_ICMPV6, 6): parse_icmp;
            (PROTO_FRAGMENT, 6): parse_fragment;
            (PROTO_UDPLITE, _): parse_udplite;
            (PROTO_SCTP, _): parse_sctp;
            (PROTO_DCCP, _): parse_sctp;
            (PROTO_HOP_BY_HOP, 6): parse_extension;
            (PROTO_ROUTING, 6): parse_extension;
            (51, 6): parse_extension;
            (60, 6): parse_extension;
            (135, 6): parse_extension;
            (139, 6): parse_extension;
            (140, 6): parse_extension;
            (PROTO_HOP_BY_HOP, 4): no_tag_before;
            (PROTO_ROUTING, 4): no_tag_before;
            (PROTO_FRAGMENT, 4): no_tag_before;
            (60, 4): no_tag_before;
            default: accept;
        }
    }

    // As a tag's next header it would mean something else.
    state no_tag_before {
        meta.unreadable = 1;
        transition accept;
    }

    state parse_fragment {
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: extract_fragment;
        }
    }

    state extract_fragment {
        packet.extract(hdr.fragment);
        meta.left = meta.left - 8;
        meta.kind = 2;
        meta.protocol = hdr.fragment.next_header;
        meta.src_port = hdr.fragment.id[31:16];
        meta.dst_port = hdr.fragment.id[15:0];
        transition select(hdr.fragment.next_header, hdr.fragment.offset) {
            (PROTO_TAG, _): carrier_ip_misplaced;
            (PROTO_UDP, 0): fragment_udp;
            default: accept;
        }
    }

    state carrier_ip_misplaced {
        meta.carrier = meta.carrier | FOUND_MISPLACED & FOUND_BY_IP;
        transition accept;
    }

    state fragment_udp {
        transition select(meta.left) {
            0 .. 7: accept;
            default: fragment_udp_port;
        }
    }

    state fragment_udp_port {
        ahead_32 = packet.lookahead<bit<32>>();
        transition select(ahead_32) {
            CARRIER_PORT &&& 0xffff: carrier_udp_misplaced;
            default: accept;
        }
    }

    state carrier_udp_misplaced {
        meta.carrier = meta.carrier | FOUND_MISPLACED & FOUND_BY_UDP;
        transition accept;
    }

    state parse_extension {
        meta.unreadable = 1;
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: extension_next;
        }
    }

    state extension_next {
        ahead_32 = packet.lookahead<bit<32>>();
        transition select(meta.protocol, ahead_32) {
            (PROTO_ROUTING, FIRST_BYTE_TAG &&& 0xff0000ff): carrier_ip_misplaced;
            (PROTO_ROUTING, FIRST_BYTE_TAG &&& 0xff000000): routing_carrier;
            (PROTO_ROUTING, 0 &&& 0xff): accept;
            (PROTO_ROUTING, _): routing_segments;
            (_, FIRST_BYTE_TAG &&& 0xff000000): carrier_ip_misplaced;
            default: accept;
        }
    }

    state routing_carrier {
        meta.source_route = 1;
        transition carrier_ip_misplaced;
    }

    state routing_segments {
        meta.source_route = 1;
        transition accept;
    }

    state parse_tcp {
        transition select(meta.left) {
            0 .. 19: l4_truncated;
            default: extract_tcp;
        }
    }

    state extract_tcp {
        packet.extract(hdr.tcp);
        meta.src_port = hdr.tcp.src_port;
        meta.dst_port = hdr.tcp.dst_port;
        meta.tcp_flags = hdr.tcp.flags;
        // Only a SYN announces an MSS.
        transition select(hdr.tcp.data_offset, hdr.tcp.flags) {
            (0 .. 5, _): accept;
            (_, TCP_SYN &&& TCP_SYN): tcp_option;
            default: accept;
        }
    }

    state tcp_option {
        transition select(meta.left) {
            0 .. 23: accept;
            default: tcp_first_option;
        }
    }

    state tcp_first_option {
        ahead_16 = packet.lookahead<bit<16>>();
        transition select(ahead_16) {
            0x0204: tcp_mss;
            default: accept;
        }
    }

    state tcp_mss {
        packet.extract(hdr.tcp_mss);
        transition accept;
    }

    state parse_udp {
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: extract_udp;
        }
    }

    state extract_udp {
        packet.extract(hdr.udp);
        meta.src_port = hdr.udp.src_port;
        meta.dst_port = hdr.udp.dst_port;
        transition select(hdr.udp.dst_port) {
            CARRIER_PORT: carrier_udp_misplaced;
            default: accept;
        }
    }

    state parse_udplite {
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: parse_ports;
        }
    }

    state parse_sctp {
        transition select(meta.left) {
            0 .. 11: l4_truncated;
            default: parse_ports;
        }
    }

    state parse_ports {
        packet.extract(hdr.ports);
        meta.src_port = hdr.ports.src_port;
        meta.dst_port = hdr.ports.dst_port;
        transition accept;
    }

    state parse_icmp {
        transition select(meta.left) {
            0 .. 7: l4_truncated;
            default: extract_icmp;
        }
    }

    state extract_icmp {
        packet.extract(hdr.icmp);
        meta.left = meta.left - 8;
        transition select(meta.family, hdr.icmp.type) {
            (4, 0): icmp_echo;
            (4, 8): icmp_echo;
            (6, 128): icmp_echo;
            (6, 129): icmp_echo;
            (4, 3): icmp_error_ipv4;
            (4, 11): icmp_error_ipv4;
            (4, 12): icmp_error_ipv4;
            (6, 1): icmp_error_ipv6;
            (6, 2): icmp_error_ipv6;
            (6, 3): icmp_error_ipv6;
            (6, 4): icmp_error_ipv6;
            (6, 133): neighbour;
            (6, 134): neighbour;
            (6, 135): neighbour;
            (6, 136): neighbour;
            (6, 137): neighbour;
            default: icmp_other;
        }
    }

    state icmp_echo {
        meta.src_port = hdr.icmp.id;
        meta.dst_port = hdr.icmp.id;
        transition accept;
    }

    state icmp_other {
        meta.kind = 1;
        transition accept;
    }

    state neighbour {
        meta.kind = 1;
        meta.neighbour = 1;
        transition accept;
    }

    // Does the quotation of an ICMP error begin with the carrier? Of IPv4, the
    // version is 4 and the protocol at byte 9, of IPv6 the version is 6 and the
    // next header at byte 6; UDP's destination port follows behind.
    state icmp_error_ipv4 {
        meta.kind = 1;
        meta.icmp_error = 1;
        transition select(meta.left) {
            0 .. 19: accept;
            default: quoted_ipv4;
        }
    }

    state quoted_ipv4 {
        ahead_80 = packet.lookahead<bit<80>>();
        transition select(ahead_80) {
            (80w4 << 76 | (bit<80>)PROTO_TAG) &&& (80w0xf << 76 | 0xff): quoted_carrier_ip;
            (80w0x45 << 72 | (bit<80>)PROTO_UDP) &&& (80w0xff << 72 | 0xff): quoted_ipv4_udp;
            default: accept;
        }
    }

    state quoted_ipv4_udp {
        transition select(meta.left) {
            0 .. 23: accept;
            default: quoted_ipv4_port;
        }
    }

    state quoted_ipv4_port {
        ahead_192 = packet.lookahead<bit<192>>();
        transition select(ahead_192) {
            CARRIER_PORT &&& 0xffff: quoted_carrier_udp;
            default: accept;
        }
    }

    state icmp_error_ipv6 {
        meta.kind = 1;
        meta.icmp_error = 1;
        transition select(meta.left) {
            0 .. 39: accept;
            default: quoted_ipv6;
        }
    }

    state quoted_ipv6 {
        ahead_56 = packet.lookahead<bit<56>>();
        transition select(ahead_56) {
            (56w6 << 52 | (bit<56>)PROTO_TAG) &&& (56w0xf << 52 | 0xff): quoted_carrier_ip;
            (56w6 << 52 | (bit<56>)PROTO_UDP) &&& (56w0xf << 52 | 0xff): quoted_ipv6_udp;
            default: accept;
        }
    }

    state quoted_ipv6_udp {
        transition select(meta.left) {
            0 .. 43: accept;
            default: quoted_ipv6_port;
        }
    }

    state quoted_ipv6_port {
        ahead_352 = packet.lookahead<bit<352>>();
        transition select(ahead_352) {
            CARRIER_PORT &&& 0xffff: quoted_carrier_udp;
            default: accept;
        }
    }

    state quoted_carrier_ip { meta.carrier = meta.carrier | FOUND_QUOTED & FOUND_BY_IP; transition accept; }
    state quoted_carrier_udp { meta.carrier = meta.carrier | FOUND_QUOTED & FOUND_BY_UDP; transition accept; }
}
