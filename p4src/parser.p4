// The parser. It records what it finds and judges nothing: the first fatal
// finding is left in `anomaly` (up to the IP header) or `inner_anomaly`
// (behind the place of the carrier). Which carrier counts is not known here,
// so both are read as one optional header and `port` decides.
parser CountersignParser(packet_in packet, out headers_t hdr,
                         inout metadata_t meta,
                         inout standard_metadata_t standard_metadata) {
    state start {
        meta.frame_len = (bit<16>)standard_metadata.packet_length;
        meta.in_port = (port_t)standard_metadata.ingress_port;
        transition select(standard_metadata.ingress_port) {
            CPU_PORT: parse_packet_out;
            default: parse_ethernet;
        }
    }

    state parse_packet_out {
        packet.extract(hdr.packet_out);
        meta.frame_len = meta.frame_len - 6;
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

    state truncated { meta.anomaly = Reason.TRUNCATED; transition accept; }
    state not_ip { meta.anomaly = Reason.NOT_IP; transition accept; }
    state vlan_stacked { meta.anomaly = Reason.VLAN_STACKED; transition accept; }
    state ip_version { meta.anomaly = Reason.IP_VERSION; transition accept; }
    state bad_length { meta.anomaly = Reason.BAD_LENGTH; transition accept; }
    state bad_options { meta.anomaly = Reason.BAD_OPTIONS; transition accept; }
    state jumbogram { meta.anomaly = Reason.JUMBOGRAM; transition accept; }
    state l4_truncated { meta.inner_anomaly = Reason.L4_TRUNCATED; transition accept; }
    state tag_malformed { meta.tag_anomaly = Reason.TAG_MALFORMED; transition accept; }

    state parse_ethernet {
        transition select(meta.frame_len < 14) {
            true: truncated;
            default: extract_ethernet;
        }
    }

    state extract_ethernet {
        packet.extract(hdr.ethernet);
        meta.frame_len = meta.frame_len - 14;
        transition select(hdr.ethernet.ether_type) {
            ETHERTYPE_VLAN: parse_vlan;
            ETHERTYPE_QINQ: vlan_stacked;
            ETHERTYPE_ARP: parse_arp;
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_IPV6: parse_ipv6;
            default: not_ip;
        }
    }

    state parse_vlan {
        transition select(meta.frame_len < 4) {
            true: truncated;
            default: extract_vlan;
        }
    }

    state extract_vlan {
        packet.extract(hdr.vlan);
        meta.frame_len = meta.frame_len - 4;
        meta.vlan = hdr.vlan.vid;
        transition select(hdr.vlan.ether_type) {
            ETHERTYPE_VLAN: vlan_stacked;
            ETHERTYPE_QINQ: vlan_stacked;
            ETHERTYPE_ARP: parse_arp;
            ETHERTYPE_IPV4: parse_ipv4;
            ETHERTYPE_IPV6: parse_ipv6;
            default: not_ip;
        }
    }

    state parse_arp {
        transition select(meta.frame_len < 28) {
            true: truncated;
            default: arp;
        }
    }

    state arp { meta.arp = 1; transition accept; }

    // ---- IPv4 -------------------------------------------------------------

    state parse_ipv4 {
        transition select(meta.frame_len < 20) {
            true: truncated;
            default: extract_ipv4;
        }
    }

    state extract_ipv4 {
        packet.extract(hdr.ipv4);
        meta.family = 4;
        meta.ip_len = hdr.ipv4.total_len;
        meta.left = hdr.ipv4.total_len - 20;
        meta.protocol = hdr.ipv4.protocol;
        meta.option_left = ((bit<8>)hdr.ipv4.ihl << 2) - 20;
        transition select(hdr.ipv4.version) {
            4: ipv4_ihl;
            default: ip_version;
        }
    }

    state ipv4_ihl {
        transition select(hdr.ipv4.ihl < 5) {
            true: bad_length;
            default: ipv4_total;
        }
    }

    state ipv4_total {
        transition select(hdr.ipv4.total_len < ((bit<16>)hdr.ipv4.ihl << 2)) {
            true: bad_length;
            default: ipv4_frame;
        }
    }

    state ipv4_frame {
        transition select(hdr.ipv4.total_len > meta.frame_len) {
            true: bad_length;
            default: ipv4_option;
        }
    }

    // Options byte by byte: which of them route by source is a matter of drop,
    // and their order must survive.
    state ipv4_option {
        transition select(meta.option_left) {
            0: ipv4_fragment;
            default: ipv4_option_kind;
        }
    }

    state ipv4_option_kind {
        packet.extract(hdr.ipv4_options.next);
        meta.option_left = meta.option_left - 1;
        meta.left = meta.left - 1;
        transition select(hdr.ipv4_options.last.value) {
            0: ipv4_option_end;
            1: ipv4_option;
            131: ipv4_source_route;
            137: ipv4_source_route;
            default: ipv4_option_length;
        }
    }

    state ipv4_source_route {
        meta.source_route = 1;
        transition ipv4_option_length;
    }

    state ipv4_option_length {
        transition select(meta.option_left) {
            0: bad_options;
            default: extract_option_length;
        }
    }

    state extract_option_length {
        packet.extract(hdr.ipv4_options.next);
        meta.option_left = meta.option_left - 1;
        meta.left = meta.left - 1;
        meta.option_skip = hdr.ipv4_options.last.value;
        transition select(meta.option_skip < 2) {
            true: bad_options;
            default: ipv4_option_fits;
        }
    }

    state ipv4_option_fits {
        meta.option_skip = meta.option_skip - 2;
        transition select(meta.option_skip > meta.option_left) {
            true: bad_options;
            default: ipv4_option_skip;
        }
    }

    state ipv4_option_skip {
        transition select(meta.option_skip) {
            0: ipv4_option;
            default: ipv4_option_byte;
        }
    }

    state ipv4_option_byte {
        packet.extract(hdr.ipv4_options.next);
        meta.option_left = meta.option_left - 1;
        meta.left = meta.left - 1;
        meta.option_skip = meta.option_skip - 1;
        transition ipv4_option_skip;
    }

    state ipv4_option_end {
        transition select(meta.option_left) {
            0: ipv4_fragment;
            default: ipv4_option_padding;
        }
    }

    state ipv4_option_padding {
        packet.extract(hdr.ipv4_options.next);
        meta.option_left = meta.option_left - 1;
        meta.left = meta.left - 1;
        transition ipv4_option_end;
    }

    state ipv4_fragment {
        transition select(hdr.ipv4.mf, hdr.ipv4.frag_offset) {
            (0, 0): parse_carrier;
            default: ipv4_is_fragment;
        }
    }

    state ipv4_is_fragment {
        meta.kind = 2;
        meta.src_port = 0;
        meta.dst_port = hdr.ipv4.id;
        transition select(hdr.ipv4.protocol, hdr.ipv4.frag_offset) {
            (PROTO_TAG, _): ipv4_carrier_ip_fragmented;
            (PROTO_UDP, 0): ipv4_fragment_udp;
            default: accept;
        }
    }

    state ipv4_carrier_ip_fragmented {
        meta.carrier_fragmented = 1;
        transition accept;
    }

    state ipv4_fragment_udp {
        transition select(meta.left < 8) {
            true: accept;
            default: ipv4_fragment_udp_port;
        }
    }

    state ipv4_fragment_udp_port {
        transition select(packet.lookahead<bit<32>>()[15:0]) {
            CARRIER_PORT: ipv4_carrier_udp_fragmented;
            default: accept;
        }
    }

    state ipv4_carrier_udp_fragmented {
        meta.carrier_fragmented = 2;
        transition accept;
    }

    // ---- IPv6 -------------------------------------------------------------

    state parse_ipv6 {
        transition select(meta.frame_len < 40) {
            true: truncated;
            default: extract_ipv6;
        }
    }

    state extract_ipv6 {
        packet.extract(hdr.ipv6);
        meta.family = 6;
        meta.frame_len = meta.frame_len - 40;
        meta.ip_len = hdr.ipv6.payload_len + 40;
        meta.left = hdr.ipv6.payload_len;
        meta.protocol = hdr.ipv6.next_header;
        transition select(hdr.ipv6.version) {
            6: ipv6_frame;
            default: ip_version;
        }
    }

    state ipv6_frame {
        transition select(hdr.ipv6.payload_len > meta.frame_len) {
            true: bad_length;
            default: ipv6_hop_by_hop;
        }
    }

    state ipv6_hop_by_hop {
        transition select(hdr.ipv6.next_header, hdr.ipv6.payload_len) {
            (PROTO_HOP_BY_HOP, 0): jumbogram;
            (PROTO_HOP_BY_HOP, _): parse_hop_by_hop;
            default: parse_carrier;
        }
    }

    state parse_hop_by_hop {
        transition select(meta.left < 8) {
            true: bad_length;
            default: hop_by_hop_length;
        }
    }

    state hop_by_hop_length {
        transition select((((bit<16>)packet.lookahead<bit<16>>()[7:0] + 1) << 3) > meta.left) {
            true: bad_length;
            default: extract_hop_by_hop;
        }
    }

    state extract_hop_by_hop {
        packet.extract(hdr.hop_by_hop,
            (((bit<32>)packet.lookahead<bit<16>>()[7:0] + 1) << 6) - 16);
        meta.left = meta.left - (((bit<16>)hdr.hop_by_hop.length + 1) << 3);
        meta.protocol = hdr.hop_by_hop.next_header;
        transition parse_carrier;
    }

    // ---- Carrier and tag --------------------------------------------------

    state parse_carrier {
        transition select(meta.protocol) {
            PROTO_TAG: carrier_ip;
            PROTO_UDP: maybe_carrier_udp;
            default: parse_protocol;
        }
    }

    state carrier_ip {
        meta.carrier_seen = 1;
        transition parse_tag;
    }

    state maybe_carrier_udp {
        transition select(meta.left < 8) {
            true: l4_truncated;
            default: carrier_udp_port;
        }
    }

    state carrier_udp_port {
        transition select(packet.lookahead<bit<32>>()[15:0]) {
            CARRIER_PORT: carrier_udp;
            default: parse_udp;
        }
    }

    state carrier_udp {
        packet.extract(hdr.tag_udp);
        meta.left = meta.left - 8;
        meta.carrier_seen = 2;
        transition parse_tag;
    }

    state parse_tag {
        transition select(meta.left < 28) {
            true: tag_malformed;
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
        transition select(meta.left < 64) {
            true: tag_malformed;
            default: extract_sealed_64;
        }
    }

    state extract_sealed_64 {
        packet.extract(hdr.sealed_64);
        meta.left = meta.left - 64;
        transition tag_next_header;
    }

    state tag_sealed_256 {
        transition select(meta.left < 256) {
            true: tag_malformed;
            default: tag_nonce;
        }
    }

    state tag_nonce {
        transition select(hdr.tag.nonce) {
            0: extract_sealed_256;
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
            (PROTO_FRAGMENT, 6): parse_fragment;
            (PROTO_HOP_BY_HOP, 6): parse_extension;
            (PROTO_ROUTING, 6): parse_extension;
            (51, 6): parse_extension;
            (60, 6): parse_extension;
            (135, 6): parse_extension;
            (139, 6): parse_extension;
            (140, 6): parse_extension;
            (PROTO_TCP, _): parse_tcp;
            (PROTO_UDP, _): parse_inner_udp;
            (PROTO_UDPLITE, _): parse_udplite;
            (PROTO_SCTP, _): parse_sctp;
            (PROTO_DCCP, _): parse_sctp;
            (PROTO_ICMP, 4): parse_icmp;
            (PROTO_ICMPV6, 6): parse_icmp;
            default: accept;
        }
    }

    state parse_fragment {
        transition select(meta.left < 8) {
            true: l4_truncated;
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
        meta.carrier_misplaced = 1;
        transition accept;
    }

    state fragment_udp {
        transition select(meta.left < 8) {
            true: accept;
            default: fragment_udp_port;
        }
    }

    state fragment_udp_port {
        transition select(packet.lookahead<bit<32>>()[15:0]) {
            CARRIER_PORT: carrier_udp_misplaced;
            default: accept;
        }
    }

    state carrier_udp_misplaced {
        meta.carrier_misplaced = 2;
        transition accept;
    }

    state parse_extension {
        meta.unreadable = 1;
        transition select(meta.left < 8) {
            true: l4_truncated;
            default: extension_next;
        }
    }

    state extension_next {
        transition select(meta.protocol, packet.lookahead<bit<32>>()[31:24],
                          packet.lookahead<bit<32>>()[7:0]) {
            (PROTO_ROUTING, PROTO_TAG, 0): carrier_ip_misplaced;
            (PROTO_ROUTING, PROTO_TAG, _): routing_carrier;
            (PROTO_ROUTING, _, 0): accept;
            (PROTO_ROUTING, _, _): routing_segments;
            (_, PROTO_TAG, _): carrier_ip_misplaced;
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
        transition select(meta.left < 20) {
            true: l4_truncated;
            default: extract_tcp;
        }
    }

    state extract_tcp {
        packet.extract(hdr.tcp);
        meta.src_port = hdr.tcp.src_port;
        meta.dst_port = hdr.tcp.dst_port;
        meta.tcp_flags = hdr.tcp.flags;
        transition select(hdr.tcp.data_offset < 6) {
            true: accept;
            default: tcp_option;
        }
    }

    state tcp_option {
        transition select(meta.left < 24) {
            true: accept;
            default: tcp_first_option;
        }
    }

    state tcp_first_option {
        transition select(packet.lookahead<bit<16>>()) {
            0x0204: tcp_mss;
            default: accept;
        }
    }

    state tcp_mss {
        packet.extract(hdr.tcp_mss);
        transition accept;
    }

    state parse_inner_udp {
        transition select(meta.left < 8) {
            true: l4_truncated;
            default: parse_udp;
        }
    }

    state parse_udp {
        packet.extract(hdr.udp);
        meta.src_port = hdr.udp.src_port;
        meta.dst_port = hdr.udp.dst_port;
        transition select(hdr.udp.dst_port) {
            CARRIER_PORT: carrier_udp_misplaced;
            default: accept;
        }
    }

    state parse_udplite {
        transition select(meta.left < 8) {
            true: l4_truncated;
            default: parse_ports;
        }
    }

    state parse_sctp {
        transition select(meta.left < 12) {
            true: l4_truncated;
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
        transition select(meta.left < 8) {
            true: l4_truncated;
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
            (4, 3): icmp_error;
            (4, 11): icmp_error;
            (4, 12): icmp_error;
            (6, 1): icmp_error;
            (6, 2): icmp_error;
            (6, 3): icmp_error;
            (6, 4): icmp_error;
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

    // Does the quotation of an ICMP error begin with the carrier?
    state icmp_error {
        meta.kind = 1;
        meta.icmp_error = 1;
        transition select(meta.family) {
            4: quoted_ipv4;
            default: quoted_ipv6;
        }
    }

    state quoted_ipv4 {
        transition select(meta.left < 20) {
            true: accept;
            default: quoted_ipv4_protocol;
        }
    }

    state quoted_ipv4_protocol {
        transition select(packet.lookahead<bit<8>>(), packet.lookahead<bit<80>>()[7:0]) {
            (0x40 &&& 0xf0, PROTO_TAG): quoted_carrier_ip;
            (0x45, PROTO_UDP): quoted_ipv4_udp;
            default: accept;
        }
    }

    state quoted_ipv4_udp {
        transition select(meta.left < 24) {
            true: accept;
            default: quoted_ipv4_port;
        }
    }

    state quoted_ipv4_port {
        transition select(packet.lookahead<bit<192>>()[15:0]) {
            CARRIER_PORT: quoted_carrier_udp;
            default: accept;
        }
    }

    state quoted_ipv6 {
        transition select(meta.left < 40) {
            true: accept;
            default: quoted_ipv6_next;
        }
    }

    state quoted_ipv6_next {
        transition select(packet.lookahead<bit<8>>(), packet.lookahead<bit<56>>()[7:0]) {
            (0x60 &&& 0xf0, PROTO_TAG): quoted_carrier_ip;
            (0x60 &&& 0xf0, PROTO_UDP): quoted_ipv6_udp;
            default: accept;
        }
    }

    state quoted_ipv6_udp {
        transition select(meta.left < 44) {
            true: accept;
            default: quoted_ipv6_port;
        }
    }

    state quoted_ipv6_port {
        transition select(packet.lookahead<bit<352>>()[15:0]) {
            CARRIER_PORT: quoted_carrier_udp;
            default: accept;
        }
    }

    state quoted_carrier_ip { meta.carrier_quoted = 1; transition accept; }
    state quoted_carrier_udp { meta.carrier_quoted = 2; transition accept; }
}
