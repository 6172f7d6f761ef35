// Stage `egress_port`: the destination (longest match) gives a next hop group,
// and its member the port with VLAN, role, zone and MTU; or, port to port, the
// ingress port gives them. Nothing of the packet is changed yet, because it
// may still be held.
control EgressPort(inout headers_t hdr, inout metadata_t meta) {
    @id(0x11000401)
    action_selector(HashAlgorithm.identity, NEXT_HOP_MEMBERS, 32) next_hops;

    // MTU in bytes of the IP packet.
    @id(0x01000401)
    action next_hop(@id(1) port_t port, @id(2) bit<12> vlan, @id(3) Role role, @id(4) zone_t zone,
                    @id(5) bit<16> mtu, @id(6) mac_t src_mac, @id(7) mac_t dst_mac) {
        meta.out_port = port;
        meta.out_vlan = vlan;
        meta.out_role = role;
        meta.out_zone = zone;
        meta.mtu = mtu;
        meta.next_src = src_mac;
        meta.next_dst = dst_mac;
    }

    // An address of the member itself.
    @id(0x01000402)
    action to_me() {
        meta.disposition = Disposition.HOLD;
        meta.reason = Reason.TO_ME;
    }

    @id(0x01000403)
    action no_route() {
        meta.disposition = Disposition.DROP;
        meta.reason = Reason.NO_ROUTE;
    }

    @id(0x01000404)
    action to_port(@id(1) port_t port, @id(2) Role role, @id(3) zone_t zone, @id(4) bit<16> mtu) {
        meta.transparent = 1;
        meta.out_port = port;
        meta.out_vlan = meta.vlan;
        meta.out_role = role;
        meta.out_zone = zone;
        meta.mtu = mtu;
    }

    @id(0x01000405)
    action routed() { }

    @id(0x02000401)
    table egress_port_v4 {
        key = {
            hdr.ipv4.dst : lpm @name("dst") @id(1);
            meta.flow_hash : selector;
        }
        actions = { next_hop; to_me; no_route; }
        implementation = next_hops;
        size = ROUTE_SIZE;
    }

    @id(0x02000402)
    table egress_port_v6 {
        key = {
            hdr.ipv6.dst : lpm @name("dst") @id(1);
            meta.flow_hash : selector;
        }
        actions = { next_hop; to_me; no_route; }
        implementation = next_hops;
        size = ROUTE_SIZE;
    }

    @id(0x02000403)
    table cross_connect {
        key = {
            meta.in_port : exact @name("in_port") @id(1);
            meta.vlan : exact @name("vlan") @id(2);
        }
        actions = { to_port; @defaultonly routed; }
        const default_action = routed();
        size = CROSS_CONNECT_SIZE;
    }

    // h of docs/wire.md: the CRC-32 of M from w2 on.
    action flow_hash_ipv4() {
        hash(meta.flow_hash, HashAlgorithm.crc32, CRC_BASE, { meta.sip.w2, meta.sip.w3 }, 64w0x100000000);
    }

    action flow_hash_ipv6() {
        hash(meta.flow_hash, HashAlgorithm.crc32, CRC_BASE, { meta.sip.w2, meta.low6, meta.high6 }, 64w0x100000000);
    }

    action hold(Reason reason) {
        meta.disposition = Disposition.HOLD;
        meta.reason = reason;
    }

    apply {
        cross_connect.apply();
        if (meta.raw == 0) {
            if (meta.family == 4) {
                flow_hash_ipv4();
                if (meta.transparent == 0) {
                    if (!egress_port_v4.apply().hit) {
                        no_route();
                    }
                    if (meta.disposition == Disposition.FORWARD && hdr.ipv4.ttl < 2) {
                        hold(Reason.TTL_EXPIRED);
                    }
                }
            } else {
                flow_hash_ipv6();
                if (meta.transparent == 0) {
                    if (!egress_port_v6.apply().hit) {
                        no_route();
                    }
                    if (meta.disposition == Disposition.FORWARD && hdr.ipv6.hop_limit < 2) {
                        hold(Reason.TTL_EXPIRED);
                    }
                }
            }
        } else if (meta.transparent == 0) {
            no_route();
        }
    }
}
