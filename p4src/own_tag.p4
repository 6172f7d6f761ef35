// Stage `own_tag`: what leaves by a trunk or towards an echoing host gets the
// member's own tag. With suite 1 only its head is chosen here, the digest is
// made behind the traffic manager; with suites 2 and 3 the session's finished
// tag is looked up, and a miss is held.
control OwnTag(inout headers_t hdr, inout metadata_t meta) {
    register<bit<64>>(PORT_COUNT) nonce_count;

    bit<64> salt = 0;

    // Suite 1. The nonce is the salt, with the port folded in, plus a counter
    // per egress port, mod 2^64; the salt is drawn anew for each write.
    @id(0x01000801)
    action sign_siphash(@id(1) bit<32> unid, @id(2) bit<16> epoch,
                        @id(3) bit<64> k0, @id(4) bit<64> k1, @id(5) bit<64> nonce_salt) {
        meta.own_suite = Suite.SIPHASH;
        meta.own_unid = unid;
        meta.own_epoch = epoch;
        meta.own_key0 = k0;
        meta.own_key1 = k1;
        salt = nonce_salt;
        meta.new_tag_len = 28;
    }

    // Suites 2 and 3: from own_tag.
    @id(0x01000802)
    action sign_by_session() {
        meta.own_suite = Suite.ED25519;
    }

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
        meta.own_suite = Suite.ED25519;
        meta.own_unid = unid;
        meta.own_epoch = epoch;
        meta.own_nonce = nonce;
        meta.own_digest = tag_digest;
        meta.own_sealed_64 = sealed;
        meta.new_tag_len = 92;
    }

    @id(0x01000812)
    action put_rsa2048(@id(1) bit<32> unid, @id(2) bit<16> epoch,
                       @id(3) bit<64> tag_digest, @id(4) bit<2048> sealed) {
        meta.own_suite = Suite.RSA2048;
        meta.own_unid = unid;
        meta.own_epoch = epoch;
        meta.own_nonce = 0;
        meta.own_digest = tag_digest;
        meta.own_sealed_256 = sealed;
        meta.new_tag_len = 284;
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
    action old_length() {
        meta.old_tag_len = (bit<16>)hdr.tag.length << 2;
    }

    apply {
        if (meta.tagged == 1) {
            old_length();
            if (hdr.tag_udp.isValid()) {
                meta.old_tag_len = meta.old_tag_len + 8;
            }
        }
        if (meta.out_role == Role.TRUNK || meta.out_role == Role.ECHO) {
            meta.put_tag = 1;
            own_key.apply();
            if (meta.disposition == Disposition.FORWARD && meta.own_suite != Suite.SIPHASH) {
                if (meta.family == 4) {
                    own_tag_v4.apply();
                } else {
                    own_tag_v6.apply();
                }
            }
            if (meta.port_flags & PORT_CARRIER_UDP != 0) {
                meta.new_tag_len = meta.new_tag_len + 8;
            }
        }
        // An IPv4 fragment gets or loses its fragment header with the tag.
        if (meta.family == 4 && meta.kind == 2) {
            if (meta.tagged == 1) {
                meta.old_tag_len = meta.old_tag_len + 8;
            }
            if (meta.put_tag == 1) {
                meta.new_tag_len = meta.new_tag_len + 8;
            }
        }
        if (meta.disposition == Disposition.FORWARD) {
            if ((bit<32>)meta.ip_len - (bit<32>)meta.old_tag_len + (bit<32>)meta.new_tag_len > (bit<32>)meta.mtu) {
                meta.disposition = Disposition.HOLD;
                meta.reason = Reason.TOO_BIG;
            } else if (meta.put_tag == 1 && meta.own_suite == Suite.SIPHASH) {
                @atomic {
                    bit<64> count;
                    nonce_count.read(count, (bit<32>)meta.out_port);
                    nonce_count.write((bit<32>)meta.out_port, count + 1);
                    meta.own_nonce = (salt ^ ((bit<64>)meta.out_port << 48)) + count;
                }
            }
        }
    }
}
