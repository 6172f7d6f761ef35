// Stage `egress`: the tag is put on, replaced or taken off by the role of the
// egress port, and a routed packet gets its next hop's addresses.
control Rewrite(inout headers_t hdr, inout metadata_t meta) {
    SipHash() siphash;
    Mss() mss;

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
        hdr.tag_udp.setInvalid();
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

    action put_on() {
        hdr.tag.setValid();
        hdr.tag.next_header = original;
        hdr.tag.version = 1;
        hdr.tag.flags = 0;
        hdr.tag.unid = meta.own_unid;
        hdr.tag.epoch = meta.own_epoch;
        hdr.tag.reserved = 0;
        hdr.tag.nonce = meta.own_nonce;
    }

    action put_siphash() {
        hdr.tag.length = 7;
        hdr.tag.suite = 1;
        meta.sip.k0 = meta.own_key0;
        meta.sip.k1 = meta.own_key1;
        meta.sip.w0 = 4w1 ++ 4w1 ++ 8w0 ++ meta.own_epoch ++ meta.own_unid;
        meta.sip.w1 = meta.own_nonce;
    }

    action put_ed25519() {
        hdr.tag.length = 23;
        hdr.tag.suite = 2;
        hdr.tag.digest = meta.own_digest;
        hdr.sealed_64.setValid();
        hdr.sealed_64.bytes = meta.own_sealed_64;
    }

    action put_rsa2048() {
        hdr.tag.length = 71;
        hdr.tag.suite = 3;
        hdr.tag.digest = meta.own_digest;
        hdr.sealed_256.setValid();
        hdr.sealed_256.bytes = meta.own_sealed_256;
    }

    action put_carrier_udp() {
        hdr.tag_udp.setValid();
        hdr.tag_udp.src_port = 49152 + (bit<16>)(meta.flow_hash[13:0]);
        hdr.tag_udp.dst_port = CARRIER_PORT;
        hdr.tag_udp.checksum = 0;
    }

    apply {
        if (meta.transparent == 0) {
            if (meta.family == 4) {
                next_hop_ipv4();
            } else {
                next_hop_ipv6();
            }
            if (meta.out_vlan == 0 && hdr.vlan.isValid()) {
                pop_vlan();
            } else if (meta.out_vlan != 0) {
                if (!hdr.vlan.isValid()) {
                    push_vlan();
                }
                hdr.vlan.vid = meta.out_vlan;
            }
        }

        if (meta.tagged == 1 || meta.put_tag == 1) {
            bit<16> length = meta.ip_len - meta.old_tag_len + meta.new_tag_len;
            if (meta.tagged == 1) {
                take_off();
            } else if (hdr.hop_by_hop.isValid()) {
                original = hdr.hop_by_hop.next_header;
            } else if (meta.family == 4) {
                original = hdr.ipv4.protocol;
            } else {
                original = hdr.ipv6.next_header;
            }
            if (meta.family == 4 && meta.kind == 2) {
                if (meta.tagged == 1 && meta.put_tag == 0) {
                    restore_fragment();
                } else if (meta.tagged == 0) {
                    save_fragment();
                }
            }

            bit<8> outer = original;
            if (meta.put_tag == 1) {
                if (meta.out_role == Role.TRUNK) {
                    mss.apply(hdr, meta);
                }
                put_on();
                outer = PROTO_TAG;
                if (meta.own_suite == Suite.SIPHASH) {
                    put_siphash();
                    siphash.apply(meta);
                    hdr.tag.digest = meta.sip.v0;
                } else if (meta.own_suite == Suite.ED25519) {
                    put_ed25519();
                } else {
                    put_rsa2048();
                }
                if (meta.port_flags & PORT_CARRIER_UDP != 0) {
                    put_carrier_udp();
                    outer = PROTO_UDP;
                    if (meta.family == 4) {
                        hdr.tag_udp.length = length - ((bit<16>)hdr.ipv4.ihl << 2);
                    } else if (hdr.hop_by_hop.isValid()) {
                        hdr.tag_udp.length = length - 40 - (((bit<16>)hdr.hop_by_hop.length + 1) << 3);
                    } else {
                        hdr.tag_udp.length = length - 40;
                    }
                }
                if (meta.family == 6 && meta.tagged == 0 && hdr.ipv6.flow_label == 0) {
                    hdr.ipv6.flow_label = meta.flow_hash[19:0];
                    if (hdr.ipv6.flow_label == 0) {
                        hdr.ipv6.flow_label = 1;
                    }
                }
            }

            if (meta.family == 4) {
                hdr.ipv4.total_len = length;
                hdr.ipv4.protocol = outer;
            } else {
                hdr.ipv6.payload_len = length - 40;
                if (hdr.hop_by_hop.isValid()) {
                    hdr.hop_by_hop.next_header = outer;
                } else {
                    hdr.ipv6.next_header = outer;
                }
            }
            meta.ip_len = length;
        }
    }
}
