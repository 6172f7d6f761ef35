// Stage `punt`: reason, role and zone give a meter; what is within it goes to
// the CPU, held or as a copy, what is over it is dropped, `punt_limited` (a
// copy is then only not made). A returned packet is never punted again.
control Punt(inout headers_t hdr, inout metadata_t meta, inout bit<1> copy_now) {
    @id(0x15000901)
    direct_meter<bit<2>>(MeterType.packets) punt_meter;

    bit<2> color = 2;

    @id(0x01000901)
    action to_cpu() {
        punt_meter.read(color);
    }

    @id(0x01000902)
    action no_punt() {
        color = 2;
    }

    @id(0x02000901)
    table punt {
        key = {
            meta.punt_reason : exact @name("reason") @id(1);
            meta.role : exact @name("role") @id(2);
            meta.zone : exact @name("zone") @id(3);
        }
        actions = { to_cpu; @defaultonly no_punt; }
        const default_action = no_punt();
        meters = punt_meter;
        size = PUNT_SIZE;
    }

    apply {
        if (meta.disposition == Disposition.HOLD) {
            meta.punt_reason = meta.reason;
        } else if (meta.disposition == Disposition.FORWARD || meta.copy == Reason.TAG_UNKNOWN_KEY) {
            meta.punt_reason = meta.copy;
        }
        if (meta.returned == 1) {
            if (meta.disposition == Disposition.HOLD) {
                meta.disposition = Disposition.DROP;
                meta.reason = Reason.PUNT_LOOP;
            }
        } else if (meta.punt_reason != Reason.NONE) {
            punt.apply();
            if (color == 2) {
                if (meta.disposition == Disposition.HOLD) {
                    meta.disposition = Disposition.DROP;
                    meta.reason = Reason.PUNT_LIMITED;
                }
            } else if (meta.disposition != Disposition.HOLD) {
                copy_now = 1;
            }
        }
    }
}
