/** Runs `vhost-pci` in a receiving guest as a user without rights: node as-user.mjs UID ARGUMENTS… */
const [uid, ...args] = process.argv.slice(2);
process.setgroups([]);
process.setgid(Number(uid));
process.setuid(Number(uid));
process.argv.splice(1, process.argv.length, 'vhost-pci', ...args);
await import('/opt/vhost-pci/dist/cli/main.js');
