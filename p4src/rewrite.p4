// Stage `egress`: the tag is put on, replaced or taken off by the role of the
// egress port, and a routed packet gets its next hop's addresses.
control Rewrite(inout headers_t hdr, inout metadata_t meta) {
    SipHash() siphash;

    // The protocol that the header before the tag's place names.
    bit<8> original = 0;

    action next_hop_ipv4() {
        hdr.ethernet.src = meta.next_src;
        hdr.ethernet.dst = meta.next_dst;
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
    }

    action next_hop_ipv6() {
        hdr.ethernet.src = meta.next_src;
        hdr.ethernet.dst = meta.next_dst;
        hdr.ipv6.hop_limit = hdr.ipv6.hop_limit - 1;
    }

    action push_vlan() {
        hdr.vlan.setValid();
        hdr.vlan.pcp = 0;
        hdr.vlan.dei = 0;
        hdr.vlan.ether_type = hdr.ethernet.ether_type;
        hdr.ethernet.ether_type = ETHERTYPE_VLAN;
    }

    action pop_vlan() {
        hdr.ethernet.ether_type = hdr.vlan.ether_type;
        hdr.vlan.setInvalid();
    }

    action take_off() {
        original = hdr.tag.next_header;
        hdr.outer_udp.setInvalid();
        hdr.tag.setInvalid();
        hdr.sealed_64.setInvalid();
        hdr.sealed_256.setInvalid();
    }

    // IPv4 only: the packet's own fragment fields come back.
    action restore_fragment() {
        original = hdr.fragment.next_header;
        hdr.ipv4.mf = hdr.fragment.more;
        hdr.ipv4.frag_offset = hdr.fragment.offset;
        hdr.ipv4.df = hdr.fragment.df;
        hdr.ipv4.id = hdr.fragment.id[15:0];
        hdr.fragment.setInvalid();
    }

    action save_fragment() {
        hdr.fragment.setValid();
        hdr.fragment.next_header = original;
        hdr.fragment.reserved = 0;
        hdr.fragment.offset = hdr.ipv4.frag_offset;
        hdr.fragment.reserved2 = 0;
        hdr.fragment.df = hdr.ipv4.df;
        hdr.fragment.more = hdr.ipv4.mf;
        hdr.fragment.id = (bit<32>)hdr.ipv4.id;
        hdr.ipv4.mf = 0;
        hdr.ipv4.frag_offset = 0;
        hdr.ipv4.df = 1;
        original = PROTO_FRAGMENT;
    }

    action put_on(bit<8> carrier) {
        hdr.own_tag.next_header = original;
        original = carrier;
    }

    action put_siphash() {
        hdr.own_tag.nonce = meta.sip.w1;
        hdr.own_tag.digest = meta.sip.v0;
    }

    action put_length_ipv4() {
        hdr.own_udp.length = (bit<16>)meta.out_len - ((bit<16>)hdr.ipv4.ihl << 2);
    }

    action put_length_ipv6() {
        hdr.own_udp.length = (bit<16>)meta.out_len - 40;
    }

    action put_length_behind_hop_by_hop() {
        hdr.own_udp.length = (bit<16>)meta.out_len - 40 - (((bit<16>)hdr.hop_by_hop.length + 1) << 3);
    }

    action flow_label(bit<20> label) {
        hdr.ipv6.flow_label = label;
    }

    action finish_ipv4() {
        hdr.ipv4.total_len = (bit<16>)meta.out_len;
        hdr.ipv4.protocol = original;
    }

    action finish_ipv6() {
        hdr.ipv6.payload_len = (bit<16>)meta.out_len - 40;
        hdr.ipv6.next_header = original;
    }

    action finish_behind_hop_by_hop() {
        hdr.ipv6.payload_len = (bit<16>)meta.out_len - 40;
        hdr.hop_by_hop.next_header = original;
    }

    action original_ipv4() {
        original = hdr.ipv4.protocol;
    }

    action original_ipv6() {
        original = hdr.ipv6.next_header;
    }

    action original_behind_hop_by_hop() {
        original = hdr.hop_by_hop.next_header;
    }

    action set_vlan() {
        hdr.vlan.vid = meta.out_vlan;
    }

    apply {
        if (meta.transparent == 0) {
            if (meta.family == 4) {
                next_hop_ipv4();
            } else {
                next_hop_ipv6();
            }
            if (meta.out_vlan == 0) {
                if (hdr.vlan.isValid()) {
                    pop_vlan();
                }
            } else {
                if (!hdr.vlan.isValid()) {
                    push_vlan();
                }
                set_vlan();
            }
        }

        if (meta.tagged == 1 || hdr.own_tag.isValid()) {
            if (meta.tagged == 1) {
                take_off();
            } else if (meta.family == 4) {
                original_ipv4();
            } else if (hdr.hop_by_hop.isValid()) {
                original_behind_hop_by_hop();
            } else {
                original_ipv6();
            }
            if (meta.family == 4 && meta.kind == 2) {
                if (meta.tagged == 0) {
                    save_fragment();
                } else if (!hdr.own_tag.isValid()) {
                    restore_fragment();
                }
            }
            if (hdr.own_tag.isValid()) {
                if (hdr.own_tag.suite == 1) {
                    siphash.apply(meta);
                    put_siphash();
                }
                if (hdr.own_udp.isValid()) {
                    put_on(PROTO_UDP);
                    if (meta.family == 4) {
                        put_length_ipv4();
                    } else if (hdr.hop_by_hop.isValid()) {
                        put_length_behind_hop_by_hop();
                    } else {
                        put_length_ipv6();
                    }
                } else {
                    put_on(PROTO_TAG);
                }
                if (meta.family == 6 && meta.tagged == 0 && hdr.ipv6.flow_label == 0) {
                    if (meta.flow_hash[19:0] == 0) {
                        flow_label(1);
                    } else {
                        flow_label(meta.flow_hash[19:0]);
                    }
                }
            }
            if (meta.family == 4) {
                finish_ipv4();
            } else if (hdr.hop_by_hop.isValid()) {
                finish_behind_hop_by_hop();
            } else {
                finish_ipv6();
            }
        }
    }
}
