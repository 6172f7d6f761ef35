// SipHash-2-4 (Aumasson, Bernstein 2012) of M, 32 bytes for IPv4 and 56 for
// IPv6, on state kept in metadata. A round is an action, and the compiler lays
// a whole digest out as one action, so that bmv2 walks a single list of
// primitives. Used once to verify (ingress) and once to issue (egress).

#define ROTL(x, n) (((x) << n) | ((x) >> (64 - n)))

#define SIP_ABSORB(w) \
    s.v3 = s.v3 ^ (w); \
    sip_round(); \
    sip_round(); \
    s.v0 = s.v0 ^ (w)

control SipHash(inout siphash_t s, in metadata_t meta, in headers_t hdr) {
    action sip_round() {
        s.v0 = s.v0 + s.v1;
        s.v2 = s.v2 + s.v3;
        s.v1 = ROTL(s.v1, 13) ^ s.v0;
        s.v3 = ROTL(s.v3, 16) ^ s.v2;
        s.v0 = ROTL(s.v0, 32) + s.v3;
        s.v2 = s.v2 + s.v1;
        s.v3 = ROTL(s.v3, 21) ^ s.v0;
        s.v1 = ROTL(s.v1, 17) ^ s.v2;
        s.v2 = ROTL(s.v2, 32);
    }

    action digest_ipv4() {
        s.w2 = meta.low ++ meta.high;
        s.v0 = s.k0 ^ 0x736f6d6570736575;
        s.v1 = s.k1 ^ 0x646f72616e646f6d;
        s.v2 = s.k0 ^ 0x6c7967656e657261;
        s.v3 = s.k1 ^ 0x7465646279746573;
        SIP_ABSORB(s.w0);
        SIP_ABSORB(s.w1);
        SIP_ABSORB(meta.protocol ++ meta.family ++ meta.kind ++ meta.low_port ++ meta.high_port);
        SIP_ABSORB(s.w2);
        SIP_ABSORB(0x2000000000000000);
        s.v2 = s.v2 ^ 0xff;
        sip_round();
        sip_round();
        sip_round();
        sip_round();
        s.v0 = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    }

    action digest_ipv6() {
        s.v0 = s.k0 ^ 0x736f6d6570736575;
        s.v1 = s.k1 ^ 0x646f72616e646f6d;
        s.v2 = s.k0 ^ 0x6c7967656e657261;
        s.v3 = s.k1 ^ 0x7465646279746573;
        SIP_ABSORB(s.w0);
        SIP_ABSORB(s.w1);
        SIP_ABSORB(meta.protocol ++ meta.family ++ meta.kind ++ meta.low_port ++ meta.high_port);
        SIP_ABSORB(meta.low6[127:64]);
        SIP_ABSORB(meta.low6[63:0]);
        SIP_ABSORB(meta.high6[127:64]);
        SIP_ABSORB(meta.high6[63:0]);
        SIP_ABSORB(0x3800000000000000);
        s.v2 = s.v2 ^ 0xff;
        sip_round();
        sip_round();
        sip_round();
        sip_round();
        s.v0 = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
    }

    // Leaves the digest in s.v0.
    apply {
        if (meta.family == 4) {
            digest_ipv4();
        } else {
            digest_ipv6();
        }
    }
}
