"""The relay server: sockets, certificates, configuration and metrics around `dialkey_relay.session`."""
