// Stage `own_tag`: what leaves by a trunk or towards an echoing host gets the
// member's own tag. With suite 1 only its head is chosen here, the digest is
// made behind the traffic manager; with suites 2 and 3 the session's finished
// tag is looked up, and a miss is held.
control OwnTag(inout headers_t hdr, inout metadata_t meta) {
    register<bit<64>>(PORT_COUNT) nonce_count;

    bit<64> salt = 0;

    action put_tag(bit<4> suite, bit<8> words, bit<32> unid, bit<16> epoch) {
        hdr.own_tag.setValid();
        hdr.own_tag.length = words;
        hdr.own_tag.version = 1;
        hdr.own_tag.suite = suite;
        hdr.own_tag.flags = 0;
        hdr.own_tag.unid = unid;
        hdr.own_tag.epoch = epoch;
        hdr.own_tag.reserved = 0;
    }

    // Suite 1. The nonce is the salt, with the port folded in, plus a counter
    // per egress port, mod 2^64; the salt is drawn anew for each write.
    @id(0x01000801)
    action sign_siphash(@id(1) bit<32> unid, @id(2) bit<16> epoch,
                        @id(3) bit<64> k0, @id(4) bit<64> k1, @id(5) bit<64> nonce_salt) {
        put_tag(1, 7, unid, epoch);
        meta.sip.k0 = k0;
        meta.sip.k1 = k1;
        meta.sip.w0 = 4w1 ++ 4w1 ++ 8w0 ++ epoch ++ unid;
        salt = nonce_salt;
    }

    // Suites 2 and 3: from own_tag.
    @id(0x01000802)
    action sign_by_session() { }

    @id(0x01000803)
    action no_signing_key() {
        meta.disposition = Disposition.DROP;
        meta.reason = Reason.NO_SIGNING_KEY;
    }

    @id(0x02000801)
    table own_key {
        key = { meta.out_role : exact @name("role") @id(1); }
        actions = { sign_siphash; sign_by_session; @defaultonly no_signing_key; }
        const default_action = no_signing_key();
        size = OWN_KEY_SIZE;
    }

    @id(0x01000811)
    action put_ed25519(@id(1) bit<32> unid, @id(2) bit<16> epoch, @id(3) bit<64> nonce,
                       @id(4) bit<64> tag_digest, @id(5) bit<512> sealed) {
        put_tag(2, 23, unid, epoch);
        hdr.own_tag.nonce = nonce;
        hdr.own_tag.digest = tag_digest;
        hdr.own_sealed_64.setValid();
        hdr.own_sealed_64.bytes = sealed;
    }

    @id(0x01000812)
    action put_rsa2048(@id(1) bit<32> unid, @id(2) bit<16> epoch,
                       @id(3) bit<64> tag_digest, @id(4) bit<2048> sealed) {
        put_tag(3, 71, unid, epoch);
        hdr.own_tag.nonce = 0;
        hdr.own_tag.digest = tag_digest;
        hdr.own_sealed_256.setValid();
        hdr.own_sealed_256.bytes = sealed;
    }

    @id(0x01000813)
    action unsigned() {
        meta.disposition = Disposition.HOLD;
        meta.reason = Reason.TAG_UNSIGNED;
    }

    @id(0x02000811)
    table own_tag_v4 {
        key = {
            meta.low : exact @name("low") @id(1);
            meta.high : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { put_ed25519; put_rsa2048; @defaultonly unsigned; }
        const default_action = unsigned();
        size = OWN_TAG_SIZE;
        support_timeout = true;
    }

    @id(0x02000812)
    table own_tag_v6 {
        key = {
            meta.low6 : exact @name("low") @id(1);
            meta.high6 : exact @name("high") @id(2);
            SESSION_KEY
        }
        actions = { put_ed25519; put_rsa2048; @defaultonly unsigned; }
        const default_action = unsigned();
        size = OWN_TAG_SIZE;
        support_timeout = true;
    }

    // The length on leaving decides whether the packet still fits.
    action start_length() {
        meta.out_len = (bit<32>)meta.ip_len;
    }

    action without_tag() {
        meta.out_len = meta.out_len - ((bit<32>)hdr.tag.length << 2);
    }

    action with_tag() {
        meta.out_len = meta.out_len + ((bit<32>)hdr.own_tag.length << 2);
    }

    action without_8() {
        meta.out_len = meta.out_len - 8;
    }

    action with_8() {
        meta.out_len = meta.out_len + 8;
    }

    action put_carrier_udp() {
        hdr.own_udp.setValid();
        hdr.own_udp.src_port = 49152 + (bit<16>)(meta.flow_hash[13:0]);
        hdr.own_udp.dst_port = CARRIER_PORT;
        hdr.own_udp.checksum = 0;
    }

    // The packet goes to the CPU as it came.
    action too_big() {
        meta.disposition = Disposition.HOLD;
        meta.reason = Reason.TOO_BIG;
        hdr.own_udp.setInvalid();
        hdr.own_tag.setInvalid();
        hdr.own_sealed_64.setInvalid();
        hdr.own_sealed_256.setInvalid();
    }

    action draw_nonce() {
        bit<64> count;
        bit<32> port = (bit<32>)meta.out_port;
        nonce_count.read(count, port);
        nonce_count.write(port, count + 1);
        meta.sip.w1 = (salt ^ ((bit<64>)meta.out_port << 48)) + count;
    }

    apply {
        start_length();
        if (meta.tagged == 1) {
            without_tag();
            if (meta.port_flags & PORT_CARRIER_UDP != 0) {
                without_8();
            }
        }
        if (meta.out_role == Role.TRUNK || meta.out_role == Role.ECHO) {
            own_key.apply();
            if (meta.disposition == Disposition.FORWARD && !hdr.own_tag.isValid()) {
                if (meta.family == 4) {
                    own_tag_v4.apply();
                } else {
                    own_tag_v6.apply();
                }
            }
            if (hdr.own_tag.isValid()) {
                with_tag();
                if (meta.port_flags & PORT_CARRIER_UDP != 0) {
                    put_carrier_udp();
                    with_8();
                }
            }
        }
        // An IPv4 fragment gets or loses its fragment header with the tag.
        if (meta.family == 4 && meta.kind == 2) {
            if (meta.tagged == 1) {
                without_8();
            }
            if (hdr.own_tag.isValid()) {
                with_8();
            }
        }
        if (meta.disposition == Disposition.FORWARD) {
            if (meta.out_len > (bit<32>)meta.mtu) {
                too_big();
            } else if (hdr.own_tag.isValid() && hdr.own_tag.suite == 1) {
                @atomic {
                    draw_nonce();
                }
            }
        }
    }
}
